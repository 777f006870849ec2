"""The likelihood of data: the change of density along the flow."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition, ConditionLike
from odelt_eqx.errors import InputError
from odelt_eqx.inputs import one_key
from odelt_eqx.network import Network, as_batch
from odelt_eqx.ode.count import integrate_time_counted
from odelt_eqx.ode.length import LengthStats
from odelt_eqx.ode.plan import Adaptive
from odelt_eqx.parallel import constrain_batch, distribute, replicate
from odelt_eqx.sampling.config import (
    SampleConfig,
    is_traced,
    leave_out_what_is_no_flow,
    raise_failures,
    resolve,
)
from odelt_eqx.sampling.field import (
    SolveStats,
    field_args,
    jumps,
    solve_stats,
    step_index,
    velocity_field,
)

X = Float[Array, "batch *shape"]
Probes = Float[Array, "batch probes *shape"]


class Likelihood(NamedTuple):
    """The density of a model at data.

    Attributes:
        log_density: natural logarithm of the density, over values as the network sees them.
        bits_per_dim: `-log2(density)` per value of an example. For images of `n` grey levels spread
            over [-1, 1], to which uniform noise as wide as the step between two was added, add
            `log2((n - 1) / 2)` for a bound on the bits of the levels themselves.
        stats: what the solve took; derivatives are not counted as evaluations.

    Example:
        >>> images = jnp.clip(noise, -1, 1)
        >>> found = odelt.log_likelihood(model, images, labels, time=odelt.FixedSteps(steps=2),
        ...                              probes=1, key=jax.random.key(0))
        >>> found.bits_per_dim.shape
        (10,)
    """

    log_density: Float[Array, " batch"]
    bits_per_dim: Float[Array, " batch"]
    stats: SolveStats


def log_likelihood(
    model: Network,
    data: X,
    condition: ConditionLike | None = None,
    config: SampleConfig = SampleConfig(time=Adaptive(rtol=1e-4, atol=1e-4)),
    *,
    probes: int | Literal["exact"] = "exact",
    key: Key[Array, ""] | None = None,
    **options: Any,
) -> Likelihood:
    r"""Return the density of the model at data, by the instantaneous change of variables.

    $$\log p_1(x_1) = \log \mathcal{N}(x_0; 0, I) - \int_0^1 \nabla \cdot v(t, x_t)\, dt$$

    with $x_t$ the path from the data back to its noise, solved together with the integral.
    Source: arXiv 1806.07366 (equation 8), 1810.01367 (the estimate of the trace).

    Guidance by depth is left out, with a warning: it follows no density of the model's.

    The arguments are those of `sample`, with data (batch, *shape) in place of noise, besides:

    Args:
        probes: "exact" takes one derivative per value of an example; a number takes as many random
            signs $\epsilon$ for the unbiased estimate $\epsilon^T J \epsilon$ of the trace.
        key: decides the probes; an InputError if it is missing.

    Example:
        >>> found = odelt.log_likelihood(model, noise, labels, time=odelt.FixedSteps(steps=2),
        ...                              probes=2, key=jax.random.key(0))
        >>> found.log_density.shape
        (10,)
    """
    data, condition = as_batch(model, data, condition)
    options = leave_out_what_is_no_flow(config, options, "the likelihood")
    traced = is_traced(model, data, condition, config, options, key)
    config = resolve(model, data, config, options, traced)
    signs = None
    if probes != "exact":
        if not isinstance(probes, int) or probes < 1 or key is None:
            raise InputError(
                'probes must be "exact", or a number of at least 1 with a key; got '
                f"{probes!r} {'without' if key is None else 'with'} a key"
            )
        shape = (len(data), probes, *data.shape[1:])
        signs = jax.random.rademacher(one_key(key), shape, jnp.float32)
    noise, change, stats = _run(model, data, condition, config, signs)
    log_density = standard_normal(noise) + change
    bits = -log_density / (np.log(2) * np.prod(data.shape[1:]))
    result = Likelihood(log_density, bits, stats)
    return raise_failures(result, model, config, stats.time_failed, stats.length_failed, data)


@eqx.filter_jit
def _run(
    model: Network,
    data: X,
    condition: Condition | None,
    config: SampleConfig,
    signs: Probes | None,
) -> tuple[X, Float[Array, " batch"], SolveStats]:
    """Return the noise of the data, the change of log-density, and what the solve took."""
    data, condition, signs = constrain_batch(replicate((data, condition, signs)))
    index = step_index(config, model.flow_index, backwards=True)
    field = with_divergence(velocity_field(distribute(model), config, index, backwards=True))
    start, args = (data, jnp.zeros(len(data))), (field_args(condition, config), signs)
    solution, total, error = integrate_time_counted(
        field, start, config.time, args, backwards=True, jumps=jumps(config)
    )
    noise, change = jax.tree.map(lambda state: state[-1], solution.states)
    return replicate((noise, change, solve_stats(solution, total, error)))


def with_divergence(
    field: Callable[..., tuple[X, LengthStats]],
) -> Callable[..., tuple[Any, LengthStats]]:
    """Return `(t, (x, _), (args, probes)) -> ((v, div v), stats)`, one divergence per example.

    Args:
        field: `(t, x, args) -> (v, stats)`, the velocity of each example a function of its own
            state alone. `probes` are random signs for Hutchinson's estimate; None for the exact
            trace.
    """

    def augmented(
        t: Array, state: tuple[X, Array], args: tuple[Any, Probes | None]
    ) -> tuple[Any, LengthStats]:
        (x, _), (args, probes) = state, args
        v, pull, stats = jax.vjp(lambda x: field(t, x, args), x, has_aux=True)
        inner = lambda a, b: jnp.sum(a * b, axis=tuple(range(1, x.ndim)))
        if probes is None:
            size = int(np.prod(x.shape[1:]))

            def entry(i: Array) -> Array:
                unit = jnp.zeros(size).at[i].set(1.0).reshape(x.shape[1:])
                unit = jnp.broadcast_to(unit, x.shape)
                return inner(pull(unit)[0], unit)

            divergence = jnp.sum(jax.lax.map(entry, jnp.arange(size)), axis=0)
        else:
            each = jax.lax.map(lambda e: inner(pull(e)[0], e), probes.swapaxes(0, 1))
            divergence = jnp.mean(each, axis=0)
        return (v, divergence), stats

    return augmented


def standard_normal(noise: X) -> Float[Array, " batch"]:
    """Return the logarithm of the density of N(0, I), one per example."""
    size = math.prod(noise.shape[1:])
    squares = jnp.sum(noise.reshape(len(noise), size) ** 2, axis=1)
    return -0.5 * (squares + size * np.log(2 * np.pi))
