"""Paths between noise and data, distributions of times, and couplings."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from odelt_eqx.objective.base import X
from odelt_eqx.ode.plan import grid_point

PathName = Literal["straight", "trigonometric"]
TimeName = Literal["uniform", "grid", "logit-normal"]
CouplingName = Literal["independent", "optimal", "nearest"]

FLOOR = 1e-5
"""The share of the noise that the reference leaves in the data of most training types."""


def interpolate(
    t: Float[Array, " batch"], noise: X, data: X, path: PathName = "straight", sigma_min: float = 0
) -> X:
    r"""Return the point of each path at its time.

    "straight": $(1 - (1 - \sigma_{min}) t) x_0 + t x_1$ (arXiv 2210.02747, equation 22);
    "trigonometric": $\cos(\pi t / 2) x_0 + \sin(\pi t / 2) x_1$, whose variance stays one where
    noise and data have variance one (arXiv 2209.15571).

    Args:
        sigma_min: share of the noise that is left at the end of a straight path.
    """
    t = per_example(t, data)
    if path == "trigonometric":
        angle = jnp.pi / 2 * t
        return jnp.cos(angle) * noise + jnp.sin(angle) * data
    return noise + t * (data - (1 - sigma_min) * noise)


def approach(
    t: Float[Array, " batch"],
    later: Float[Array, " batch"],
    x_t: X,
    data: X,
    path: PathName = "straight",
    sigma_min: float = 0,
) -> X:
    r"""Return the state at a later time on the path through `x_t` that ends in the data.

    On a path $\alpha(t) x_0 + \beta(t) x_1$ that is $\beta(s) x_1 + \frac{\alpha(s)}{\alpha(t)}
    (x_t - \beta(t) x_1)$: the noise is known from the state and the data, whatever coupled them. On
    a straight path without `sigma_min` it is a point of the line from the state to the data. Noise
    that the state has for the width of a path shrinks alike.

    Args:
        t: in [0, 1).
        later: in [t, 1].
    """
    ones = jnp.ones_like(t)
    share = lambda time, noise, data: interpolate(time, noise, data, path, sigma_min)
    noise_at = lambda time: share(time, ones, 0 * ones)
    data_at = lambda time: share(time, 0 * ones, ones)
    left = per_example(noise_at(later) / noise_at(t), data)
    before, after = (per_example(data_at(time), data) for time in (t, later))
    return after * data + left * (x_t - before * data)


def times_from(
    uniform: Float[Array, " batch"], times: TimeName, denoise_timesteps: int, shift: float = 1.0
) -> Float[Array, " batch"]:
    """Return times in [0, 1) of the named distribution, rising with the uniform draws.

    Args:
        uniform: draws in [0, 1).
        times: "uniform"; "grid", the multiples of `1 / denoise_timesteps`; "logit-normal", the
            logistic function of standard normal draws (arXiv 2403.03206).
        shift: ratio between signal and noise is divided by it: `t / (t + shift (1 - t))`, which is
            the same paper's shift of times by the resolution.
    """
    if times == "grid":
        return on_grid(uniform, denoise_timesteps)
    t = jax.vmap(partial(grid_point, times))(uniform)
    return t if shift == 1 else t / (t + shift * (1 - t))


def on_grid(
    uniform: Float[Array, " batch"], points: int | Float[Array, "*#batch"]
) -> Float[Array, " batch"]:
    """Return `uniform` rounded down to a multiple of `1 / points`."""
    return jnp.floor(points * uniform) / points


def per_example(values: Shaped[Array, " batch"], x: X) -> Shaped[Array, "batch *ones"]:
    """Return one value per example in the shape that multiplies `x`."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def couple(noise: X, data: X, labels: Int[Array, " batch"]) -> X:
    r"""Return the noise of a batch in the order that is nearest to its data, label by label.

    The permutation minimises $\sum_i |x_1^i - x_0^{\pi(i)}|^2$ (arXiv 2302.00482, 2304.14772)
    among those that keep every noise with an example of its own label. Each label is then coupled
    with the whole normal distribution, and so is the mixture that dropped labels see; an order
    that ignored labels would bind each label to the part of the noise nearest to it, which
    sampling does not know (arXiv 2503.10636). Where a batch has few examples of a label there is
    little to gain: the larger batch / classes, the straighter the flow.

    Args:
        labels: classes of the data, before any is dropped; equal ones where there are no classes.
    """
    # The squared distance, up to a factor and to what no permutation changes.
    cost = -data.reshape(len(data), -1) @ noise.reshape(len(noise), -1).T
    low, high = jnp.min(cost), jnp.max(cost)
    cost = (cost - low) / jnp.maximum(high - low, jnp.finfo(cost.dtype).tiny)
    # More than all pairs of the batch together can cost.
    cost = jnp.where(labels[:, None] != labels[None, :], cost + len(labels), cost)
    row, column = optax.assignment.hungarian_algorithm(cost)
    return noise[jnp.zeros_like(row).at[row].set(column)]


def choose_nearest(candidates: Float[Array, "candidates batch *shape"], data: X) -> X:
    """Return for each example the one of its candidates for the noise that is nearest to it.

    The noise of an example is then no longer normal, the less so the more candidates there are:
    the flow is straighter, and sampling starts where training did less often (arXiv 2505.18521).
    Nor is it independent of the condition, whether that is a class or a vector.
    """
    distances = jnp.sum((candidates - data) ** 2, range(2, candidates.ndim))
    return candidates[jnp.argmin(distances, 0), jnp.arange(len(data))]
