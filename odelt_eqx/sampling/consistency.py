"""Sampling by predicting the image and adding noise again, for models trained to be consistent."""

from typing import Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.draws import normal
from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.cost import Cost, no_cost
from odelt_eqx.ode.plan import FixedSteps
from odelt_eqx.ode.time import SolveStats, solve_stats
from odelt_eqx.sampling.options import Options, Setting, setting
from odelt_eqx.sharding import whole


def consistency_sample(
    model: DiT,
    noise: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    **options: Unpack[Options],
) -> tuple[Float[Array, "batch height width channels"], SolveStats]:
    r"""Predict the image, add noise again for the next time, and so on (arXiv 2303.01469).

    At each time $t$ of the grid, $\hat x_1 = x + (1 - t) v(t, x)$, then
    $x = s \hat x_1 + (1 - s) \epsilon$ with fresh noise at the next time $s$. One step is one
    Euler step of `sample`.

    Args:
        model: a network trained by a consistency objective.
        noise: standard normal draws.
        labels: the classes asked for.
        key: decides the fresh noise.
        **options: as for `sample`; `time` must be `FixedSteps` with Euler.

    Returns:
        Images, and what they took, as `sample_with_stats` does.

    Raises:
        InputError: `time` is adaptive or has another solver, or as for `sample`.
    """
    time = options.get("time", FixedSteps())
    if not isinstance(time, FixedSteps) or time.solver != "euler":
        raise InputError(f"consistency sampling takes fixed Euler steps of time; got {time}")
    plans = setting(model, noise, labels, options)
    return _renoise(model, noise, labels, plans, key)


@eqx.filter_jit
def _renoise(
    model: DiT, noise: Array, labels: Array, plans: Setting, key: Key[Array, ""]
) -> tuple[Array, SolveStats]:
    (noise, labels), time, batch = whole((noise, labels)), plans.time, noise.shape[:1]
    assert isinstance(time, FixedSteps)  # for the type checker: the caller has made sure
    field = plans.field(model, labels, plans.depth)
    step_index = jnp.broadcast_to(time.step_index(model.config.flow_index), batch)

    def step(index: Array, state: tuple[Array, Cost]) -> tuple[Array, Cost]:
        x, cost = state
        now, then = time.point(index), time.point(index + 1)
        v, taken = field(jnp.broadcast_to(now, batch), x, step_index)
        fresh = normal(jax.random.fold_in(key, index), x.shape)
        x = then * (x + (1 - now) * v) + (1 - then) * fresh
        return x, jax.tree.map(jnp.add, cost, taken)

    images, cost = jax.lax.fori_loop(0, time.count, step, (noise, no_cost(batch)))
    steps = jnp.broadcast_to(time.count, batch)
    never = jnp.zeros(batch, bool)
    return whole((images, solve_stats(steps, jnp.zeros_like(steps), never, cost)))
