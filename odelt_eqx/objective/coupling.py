"""Which noise goes with which image."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def coupled(
    noise: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
) -> Float[Array, "batch height width channels"]:
    r"""Return the noise of a batch in the order that is nearest to its images, label by label.

    The permutation minimises $\sum_i |x_1^i - x_0^{\pi(i)}|^2$ (arXiv 2302.00482, 2304.14772)
    among those that keep every noise with an example of its own label. Each label is then coupled
    with the whole normal distribution, and so is the mixture that dropped labels see; an order
    that ignored labels would bind each label to the part of the noise nearest to it, which
    sampling does not know (arXiv 2503.10636). Where a batch has few examples of a label there is
    little to gain: the larger batch / classes, the straighter the flow.

    Args:
        noise: standard normal draws.
        images: data.
        labels: their classes, before any is dropped.
    """
    # The squared distance, up to a factor and to what no permutation changes.
    cost = -jnp.einsum("ihwc,jhwc->ij", images, noise)
    low, high = jnp.min(cost), jnp.max(cost)
    cost = (cost - low) / jnp.maximum(high - low, jnp.finfo(cost.dtype).tiny)
    # More than all pairs of the batch together can cost.
    cost = cost + len(labels) * (labels[:, None] != labels[None, :])
    row, column = optax.assignment.hungarian_algorithm(cost)
    return noise[jnp.zeros_like(row).at[row].set(column)]
