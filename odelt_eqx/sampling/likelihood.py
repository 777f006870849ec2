"""How likely images are: the change of density along the flow."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.cost import Cost
from odelt_eqx.ode.plan import Adaptive
from odelt_eqx.ode.time import SolveStats, TimeSolution, integrate_time, one_by_one
from odelt_eqx.sampling.options import Depth, Options, Setting, raise_failures, setting
from odelt_eqx.sharding import evenly, whole

Probes = Float[Array, "batch probes *shape"]
Field = Callable[[Array, Array, Array], tuple[Array, Cost]]


class Likelihood(NamedTuple):
    """The density of a model at images.

    Attributes:
        log_density: natural logarithm, of the density over values in [-1, 1].
        bits_per_dim: `-log2(density)` per value of an image. For data of `n` grey levels spread
            over [-1, 1], to which uniform noise as wide as the step between two was added, add
            `log2((n - 1) / 2)` for a bound on the bits of the data themselves.
        stats: what the solve took; derivatives are not counted as evaluations.
    """

    log_density: Float[Array, " batch"]
    bits_per_dim: Float[Array, " batch"]
    stats: SolveStats


def log_likelihood(
    model: DiT,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    *,
    probes: int | Literal["exact"] = "exact",
    key: Key[Array, ""] | None = None,
    **options: Unpack[Options],
) -> Likelihood:
    r"""Return the density of the model at images, by the instantaneous change of variables.

    $$\log p_1(x_1) = \log \mathcal{N}(x_0; 0, I) - \int_0^1 \nabla \cdot v(t, x_t)\, dt$$

    with $x_t$ the way back from the image to its noise, solved together with the integral.
    Source: arXiv 1806.07366 (equation 8), 1810.01367 (the estimate of the trace).

    Args:
        model: the network.
        images: data, in [-1, 1].
        labels: their classes.
        probes: "exact" takes one derivative per value of an image; a number takes as many random
            signs $\epsilon$ for the estimate $\epsilon^T J \epsilon$ of the trace, without bias.
        key: decides the probes; needed with a number of them.
        **options: as for `sample`, at any depth and with any plan; `time` is by default `Adaptive`
            with tolerances of 1e-4.

    Raises:
        InputError: the number of probes is not positive or comes without a key, or as for `sample`.
        SolveError: as for `sample`.
    """
    options = Options(**{"time": Adaptive(rtol=1e-4, atol=1e-4), **options})
    plans = setting(model, images, labels, options)
    signs = None
    if probes != "exact":
        if probes < 1 or key is None:
            raise InputError(f"probes must be at least 1 and come with a key; got {probes}, {key}")
        shape = (len(images), probes, *images.shape[1:])
        signs = jax.random.rademacher(key, shape, jnp.float32)
    solution = _solve(model, images, labels, plans, signs)
    noise, change = jax.tree.map(lambda state: state[-1], solution.states)
    log_density = standard_normal(noise) + change
    result = Likelihood(
        log_density, -log_density / (np.log(2) * np.prod(images.shape[1:])), solution.stats
    )
    return raise_failures(result, solution.stats, plans.time, plans.length)


def with_divergence(field: Field, probes: Probes | None) -> Callable[..., tuple[Any, Cost]]:
    """Return `(t, (x, _), step_index) -> ((v, div v), cost)`, one divergence per example.

    Args:
        field: `(t, x, step_index) -> (v, cost)`, each example's velocity a function of its own
            state alone.
        probes: random signs for Hutchinson's estimate; None for the exact trace.
    """

    def augmented(t: Array, state: tuple[Array, Array], step_index: Array) -> tuple[Any, Cost]:
        x, _ = state
        v, pull, cost = jax.vjp(lambda x: field(t, x, step_index), x, has_aux=True)
        inner = lambda a, b: jnp.sum(a * b, axis=tuple(range(1, x.ndim)))
        if probes is None:
            size = int(np.prod(x.shape[1:]))

            def entry(i: Array) -> Array:
                unit = jnp.zeros(size).at[i].set(1.0).reshape(x.shape[1:])
                return inner(pull(jnp.broadcast_to(unit, x.shape))[0], unit)

            divergence = jnp.sum(jax.lax.map(entry, jnp.arange(size)), axis=0)
        else:
            each = jax.lax.map(lambda e: inner(pull(e)[0], e), probes.swapaxes(0, 1))
            divergence = jnp.mean(each, axis=0)
        return (v, divergence), cost

    return augmented


def standard_normal(noise: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """Return the logarithm of the density of N(0, I), one per example."""
    size = noise[0].size
    squares = jnp.sum(noise.reshape(len(noise), -1) ** 2, axis=1)
    return -0.5 * (squares + size * np.log(2 * np.pi))


@eqx.filter_jit
def _solve(
    model: DiT, images: Array, labels: Array, plans: Setting, probes: Probes | None
) -> TimeSolution:
    def solve(x: Array, labels: Array, depth: Depth, probes: Probes | None) -> TimeSolution:
        return integrate_time(
            with_divergence(plans.field(model, labels, depth), probes),
            (x, jnp.zeros(len(x))),
            plans.time,
            flow_index=model.config.flow_index,
            backwards=True,
        )

    alone = isinstance(plans.time, Adaptive) and plans.time.per_example
    images, labels, probes = evenly(whole((images, labels, probes)))
    return whole((one_by_one(solve) if alone else solve)(images, labels, plans.depth, probes))
