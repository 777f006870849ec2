"""Noise to samples and back along the flow."""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition, ConditionLike
from odelt_eqx.errors import InputError
from odelt_eqx.inputs import batch_key, is_real
from odelt_eqx.network import Network, as_batch
from odelt_eqx.ode.count import integrate_time_counted
from odelt_eqx.ode.plan import Adaptive
from odelt_eqx.ode.time import integrate_time
from odelt_eqx.parallel import constrain_batch, distribute, replicate
from odelt_eqx.sampling.config import (
    KeyLike,
    SampleConfig,
    is_traced,
    leave_out_what_is_no_flow,
    raise_failures,
    resolve,
)
from odelt_eqx.sampling.field import (
    SolveStats,
    diffuses,
    field_args,
    jumps,
    noise_on_the_way,
    solve_stats,
    step_index,
    velocity_field,
)

X = Float[Array, "batch *shape"]


def sample(
    model: Network,
    noise: X,
    condition: ConditionLike | None = None,
    config: SampleConfig = SampleConfig(),
    *,
    key: KeyLike = None,
    **options: Any,
) -> X:
    """Carry noise to samples along the model's velocity; one program serves any step count.

    Args:
        noise: standard normal draws, (batch, *shape), float32.
        condition: class labels (batch,), also as a list or as floats; vectors (batch, size); or
            None without a condition. A model that was trained without its conditions ignores it.
        config: how the network is run.
        key: decides the noise of `diffusion`: one key, or a key for each example; else not used.
        **options: fields of `SampleConfig` to replace, such as `time`, `depth` or `guidance`.

    Returns:
        Samples at t = 1, (batch, *shape), not clipped.

    Raises:
        InputError: a shape, a label, the depth or an option does not fit the model.
        SolveError: an adaptive plan ran out of steps; it names the examples.

    Example:
        >>> odelt.sample(model, noise, labels, depth=2, time=odelt.FixedSteps(steps=4)).shape
        (10, 8, 8, 1)
    """
    return _solve(model, noise, condition, config, options, key)


def sample_with_stats(
    model: Network,
    noise: X,
    condition: ConditionLike | None = None,
    config: SampleConfig = SampleConfig(),
    *,
    key: KeyLike = None,
    **options: Any,
) -> tuple[X, SolveStats]:
    """Return what `sample` does, and what each sample took, both ready unless they are traced.

    A solve that runs out of steps is not an error here: the statistics say so, its sample is
    returned as far as it got, and the others are complete. The arguments are those of `sample`.

    Example:
        >>> adaptive = odelt.Adaptive(rtol=1e-2, atol=1e-2)
        >>> images, stats = odelt.sample_with_stats(model, noise, labels, time=adaptive)
        >>> (stats.accepted > 0).all(), stats.time_failed.any()
        (np.True_, np.False_)
    """
    weights, structure = _flatten(model)
    noise, condition = as_batch(model, noise, condition)
    traced = is_traced(weights, noise, condition, config, options, key)
    config = resolve(model, noise, config, options, traced)
    keys = example_keys(config, key, noise)
    samples, _, stats = solve_flow(weights, structure, noise, condition, config, keys, True)
    assert stats is not None  # for the type checker: they are counted
    return (samples, stats) if traced else ready((samples, stats))


def trajectory(
    model: Network,
    noise: X,
    condition: ConditionLike | None,
    at: Sequence[float],
    config: SampleConfig = SampleConfig(),
    *,
    key: KeyLike = None,
    **options: Any,
) -> Float[Array, "times batch *shape"]:
    """Return the states between noise and samples, interpolated by the solver.

    `at` holds rising times in [0, 1], or an InputError is raised; the other arguments and errors
    are those of `sample`.

    Example:
        >>> odelt.trajectory(model, noise, labels, [0.0, 0.5, 1.0]).shape
        (3, 10, 8, 8, 1)
    """
    times = np.asarray(at if is_real(at) else (), jax.dtypes.canonicalize_dtype(float))
    rising = times.ndim == 1 and len(times) and (np.diff(times) > 0).all()
    if not (rising and times[0] >= 0 and times[-1] <= 1):
        raise InputError(f"at must hold rising times in [0, 1]; got {at}")
    return _solve(model, noise, condition, config, options, key, at=jnp.asarray(times))


def invert(
    model: Network,
    data: X,
    condition: ConditionLike | None = None,
    config: SampleConfig = SampleConfig(),
    **options: Any,
) -> X:
    """Carry data (batch, *shape) back to its noise: the time ODE from t = 1 to t = 0.

    `sample` with the same options returns the data, up to the error of both solves. Guidance by
    depth and diffusion are left out, with a warning. Arguments and errors are those of `sample`.

    Example:
        >>> time = odelt.FixedSteps(steps=16, solver="heun")
        >>> images = odelt.sample(model, noise, labels, time=time)
        >>> back = odelt.invert(model, images, labels, time=time)
        >>> back.shape
        (10, 8, 8, 1)
    """
    options = leave_out_what_is_no_flow(config, options, "the way back")
    return _solve(model, data, condition, config, options, backwards=True)


def _solve(
    model: Network,
    start: X,
    condition: ConditionLike | None,
    config: SampleConfig,
    options: dict[str, Any],
    key: KeyLike = None,
    **solve: Any,
) -> Array:
    """Return the states at the times asked for, or the last; raise a SolveError for failures."""
    weights, structure = _flatten(model)
    start, condition = as_batch(model, start, condition)
    traced = is_traced(weights, start, condition, config, options, key)
    config = resolve(model, start, config, options, traced)
    keys = example_keys(config, key, start)
    # Failures of the length axis must be counted.
    count = isinstance(config.length, Adaptive)
    states, failed, stats = solve_flow(
        weights, structure, start, condition, config, keys, count, **solve
    )
    length_failed = failed if stats is None else stats.length_failed
    return raise_failures(states, model, config, failed, length_failed, start)


_flattened: dict[int, tuple[weakref.ref[Network], list[Any], Any]] = {}
"""Leaves and structure of the models that are alive, by their identity."""


def _flatten(model: Network) -> tuple[list[Any], Any]:
    """Return what `jax.tree.flatten` does; a model never changes, so it is taken apart once.

    A module is flattened in Python, which takes as long as a step of a small network.
    """
    name = id(model)
    if name not in _flattened:
        leaves, structure = jax.tree.flatten(model)
        alive = weakref.ref(model, lambda _: _flattened.pop(name, None))
        _flattened[name] = alive, leaves, structure
    return _flattened[name][1:]


@eqx.filter_jit
def solve_flow(
    weights: list[Any],
    structure: Any,
    start: X,
    condition: Condition | None,
    config: SampleConfig,
    keys: Key[Array, " batch"] | None,
    count: bool,
    backwards: bool = False,
    at: Array | None = None,
) -> tuple[Array, Array, SolveStats | None]:
    """Return states, which examples failed, and what they took if `count`.

    The model comes as leaves and structure, see `_flatten`: JAX would flatten it several times.
    """
    model = distribute(jax.tree.unflatten(structure, weights))
    start, condition = constrain_batch(replicate((start, condition)))
    index = step_index(config, model.flow_index, backwards=backwards)
    field = velocity_field(model, config, index, backwards=backwards)
    args = field_args(condition, config)
    solve = {"args": args, "backwards": backwards, "at": at, "jumps": jumps(config)}
    solve |= {"noise": noise_on_the_way(config, keys)}
    if count:
        solution, total, error = integrate_time_counted(field, start, config.time, **solve)
        stats = solve_stats(solution, total, error)
    else:
        plain = lambda *inputs: field(*inputs)[0]
        solution, stats = integrate_time(plain, start, config.time, **solve), None
    states = solution.states[-1] if at is None else solution.states
    return replicate((states, solution.failed, stats))


def example_keys(config: SampleConfig, key: KeyLike, start: X) -> Key[Array, " batch"] | None:
    """Return a key for each example, where they are used: the same in every batch."""
    if not diffuses(config):
        return None
    if key is None:
        raise InputError("diffusion draws noise on the way: give a key, like jax.random.key(0)")
    key = batch_key(key, len(start))
    return key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(start)))


def ready(result: tuple[X, SolveStats]) -> tuple[X, SolveStats]:
    """Wait for a result and return its statistics as NumPy arrays."""
    states, stats = jax.block_until_ready(result)
    return states, jax.tree.map(np.asarray, stats)
