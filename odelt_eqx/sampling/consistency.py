"""Sampling by predicting the data and adding noise again, for models trained to be consistent."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition, ConditionLike
from odelt_eqx.errors import InputError
from odelt_eqx.inputs import one_key
from odelt_eqx.network import Network, as_batch
from odelt_eqx.noise import normal
from odelt_eqx.ode.length import LengthStats
from odelt_eqx.ode.plan import FixedSteps
from odelt_eqx.ode.time import TimeSolution
from odelt_eqx.parallel import constrain_batch, distribute, replicate
from odelt_eqx.sampling.config import SampleConfig, is_traced, resolve
from odelt_eqx.sampling.field import (
    SolveStats,
    diffuses,
    field_args,
    published_step_index,
    solve_stats,
    velocity_field,
)
from odelt_eqx.sampling.flow import ready

X = Float[Array, "batch *shape"]


def consistency_sample(
    model: Network,
    noise: X,
    condition: ConditionLike | None,
    key: Key[Array, ""],
    config: SampleConfig = SampleConfig(),
    **options: Any,
) -> tuple[X, SolveStats]:
    r"""Predict the data, add noise again for the next time, and so on (arXiv 2303.01469).

    At each time $t$ of the grid, $\hat x_1 = x + (1 - t) v(t, x)$, then
    $x = s \hat x_1 + (1 - s) \epsilon$ with fresh noise at the next time $s$. One step is one
    Euler step of `sample`.

    Arguments, results and errors are those of `sample_with_stats`, besides:

    Args:
        key: decides the fresh noise.
        config: how the network is run; an InputError if its `time` is not fixed Euler steps.

    Example:
        >>> steps = odelt.FixedSteps(steps=2)
        >>> images, stats = odelt.consistency_sample(
        ...     model, noise, labels, jax.random.key(1), time=steps
        ... )
        >>> images.shape
        (10, 8, 8, 1)
    """
    key = one_key(key)
    noise, condition = as_batch(model, noise, condition)
    traced = is_traced(model, noise, condition, config, options, key)
    config = resolve(model, noise, config, options, traced)
    if diffuses(config):
        raise InputError("consistency sampling adds noise of its own: leave out diffusion")
    time = config.time
    if not isinstance(time, FixedSteps) or time.solver != "euler":
        raise InputError(f"consistency sampling takes fixed Euler steps of time; got {time}")
    result = _run(model, noise, condition, config, key)
    return result if traced else ready(result)


@eqx.filter_jit
def _run(
    model: Network, noise: X, condition: Condition | None, config: SampleConfig, key: Array
) -> tuple[X, SolveStats]:
    noise, condition = constrain_batch(replicate((noise, condition)))
    index = published_step_index(config.time, model.flow_index)
    field = velocity_field(distribute(model), config, index)
    args = field_args(condition, config)
    time, zero = config.time, jnp.zeros(len(noise))
    assert isinstance(time, FixedSteps)  # for the type checker: the caller has checked

    def step(index: Array, state: tuple[X, LengthStats]) -> tuple[X, LengthStats]:
        x, total = state
        t, s = time.point(index), time.point(index + 1)
        v, stats = field(t, x, args)
        fresh = normal(jax.random.fold_in(key, index), x.shape)
        x = (s * (x + (1 - t) * v) + (1 - s) * fresh).astype(x.dtype)
        return x, jax.tree.map(jnp.add, total, stats)

    start = noise, LengthStats.zeros(len(noise))
    x, total = jax.lax.fori_loop(0, time.count, step, start)
    steps, none = jnp.broadcast_to(time.count, zero.shape), jnp.zeros(zero.shape, int)
    solution = TimeSolution(x, steps, none, none > 0, None)
    return replicate((x, solve_stats(solution, total, zero)))
