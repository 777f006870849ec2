"""Noise to samples and back along the flow."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError
from odelt_eqx.network import Condition, ConditionLike, Network, as_condition
from odelt_eqx.ode.count import integrate_time_counted
from odelt_eqx.ode.plan import Adaptive
from odelt_eqx.ode.time import integrate_time
from odelt_eqx.parallel import constrain_batch, distribute, replicate
from odelt_eqx.sampling.config import (
    KeyLike,
    SampleConfig,
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
    """Return what `sample` does, and what each sample took, both ready.

    A solve that runs out of steps is not an error here: the statistics say so, its sample is
    returned as far as it got, and the others are complete. The arguments are those of `sample`.

    Example:
        >>> adaptive = odelt.Adaptive(rtol=1e-2, atol=1e-2)
        >>> images, stats = odelt.sample_with_stats(model, noise, labels, time=adaptive)
        >>> (stats.accepted > 0).all(), stats.time_failed.any()
        (np.True_, np.False_)
    """
    condition = as_condition(model, condition)
    config = resolve(model, noise, condition, config, options, key=key)
    keys = _keys(config, key, noise)
    return _ready(solve_flow(*jax.tree.flatten(model), noise, condition, config, keys, True))


class CompiledSampler:
    """`sample_with_stats` compiled ahead, for one shape of batch and one kind of plan.

    This is what a server calls: nothing is compiled later, and nothing of the model is taken apart
    in a call, which on small networks `sample` spends a third of its time on.

    What may change without compiling is the noise, the condition, the numbers of the time plan
    (its steps or tolerances, but not its solver), the numbers of guidance other than 0 and 1, and
    of that by depth other than 0. Arguments and errors are those of `sample`.

    Example:
        >>> sampler = odelt.CompiledSampler(model, noise, labels, odelt.SampleConfig(depth=4))
        >>> images, stats = sampler(noise, labels)
        >>> images.shape
        (10, 8, 8, 1)
    """

    def __init__(
        self,
        model: Network,
        noise: X,
        condition: ConditionLike | None = None,
        config: SampleConfig = SampleConfig(),
        key: KeyLike = None,
    ):
        """Compile, and run nothing."""
        self._model, self._config = model, config
        self._weights, self._structure = jax.tree.flatten(model)
        inputs = self._inputs(noise, condition, config, key)
        self._kinds = _kinds(*inputs)
        self._compiled = solve_flow.lower(self._weights, self._structure, *inputs, True).compile()

    @property
    def peak_bytes(self) -> int:
        """Bytes that it needs on a device at once, see `peak_bytes`."""
        return peak_bytes(self._compiled)

    def __call__(
        self,
        noise: X,
        condition: ConditionLike | None = None,
        config: SampleConfig | None = None,
        key: KeyLike = None,
    ) -> tuple[X, SolveStats]:
        """Return samples and what they took, both ready, as `sample_with_stats` does.

        `config` is by default the one that was compiled.

        Raises:
            InputError: another program would be needed, as the shape of the batch or what `config`
                says beyond the numbers above is not what was compiled; or as for `sample`.
        """
        inputs = self._inputs(noise, condition, self._config if config is None else config, key)
        kinds = _kinds(*inputs)
        for name, kind in kinds.items():
            if kind != self._kinds[name]:
                wanted, got = (" ".join(str(k).split()) for k in (self._kinds[name], kind))
                raise InputError(
                    f"compiled for {name} {wanted}; got {got}: compile another CompiledSampler"
                )
        return _ready(self._compiled(self._weights, self._structure, *inputs, True))

    def _inputs(
        self, noise: X, condition: ConditionLike | None, config: SampleConfig, key: KeyLike
    ) -> tuple[X, Condition | None, SampleConfig, Key[Array, " batch"] | None]:
        """Return what is compiled for, or called with, in the form that the program takes."""
        condition = as_condition(self._model, condition)
        config = resolve(self._model, noise, condition, config, {}, key=key)
        return noise, condition, config, _keys(config, key, noise)


def _kinds(
    noise: X, condition: Condition | None, config: SampleConfig, keys: Key[Array, " batch"] | None
) -> dict[str, Any]:
    """Return, by name, what one program is for: all but the values of arrays."""
    parts = {"noise": noise, "condition": condition, "key": keys, **vars(config)}
    is_array = lambda leaf: isinstance(leaf, Array | np.ndarray)
    kind = lambda leaf: jax.typeof(leaf).str_short() if is_array(leaf) else leaf
    return {name: jax.tree.map(kind, part) for name, part in parts.items()}


def peak_bytes(program: Any) -> int:
    """Return the bytes a program needs on a device at once: arguments, results, temporaries.

    Args:
        program: what `.lower(...).compile()` of a `jax.jit` or `eqx.filter_jit` returns.
    """
    memory = getattr(program, "compiled", program).memory_analysis()
    live = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return live + memory.temp_size_in_bytes - memory.alias_size_in_bytes


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
    times = np.asarray(at, np.float32)
    if not len(times) or not (times[0] >= 0 and times[-1] <= 1 and (np.diff(times) > 0).all()):
        raise InputError(f"at must hold rising times in [0, 1]; got {tuple(at)}")
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
    weights, structure = jax.tree.flatten(model)
    condition = as_condition(model, condition)
    inputs = jax.tree.leaves((weights, start, condition, config, options))
    traced = any(isinstance(leaf, Tracer) for leaf in inputs)
    config = resolve(model, start, condition, config, options, traced, key)
    keys = _keys(config, key, start)
    # Failures of the length axis must be counted.
    count = isinstance(config.length, Adaptive)
    states, failed, stats = solve_flow(
        weights, structure, start, condition, config, keys, count, **solve
    )
    length_failed = failed if stats is None else stats.length_failed
    return raise_failures(states, model, config, failed, length_failed)


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

    The model comes as `jax.tree.flatten` takes it apart: JAX flattens every module it is given
    several times a call, in Python, which on small networks is a third of the time of a call.
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


def _keys(config: SampleConfig, key: KeyLike, start: X) -> Key[Array, " batch"] | None:
    """Return a key for each example, where they are used: the same in every batch."""
    if key is None or not diffuses(config):
        return None
    if key.ndim == 0:
        return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(start)))
    if key.shape != start.shape[:1]:
        raise InputError(f"key must be one key or have shape {start.shape[:1]}; got {key.shape}")
    return key


def _ready(result: tuple[X, Array, SolveStats | None]) -> tuple[X, Any]:
    """Wait for a result and return its statistics as NumPy arrays."""
    states, _, stats = jax.block_until_ready(result)
    return states, jax.tree.map(np.asarray, stats)
