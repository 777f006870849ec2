"""The noise that pictures start from: each one's own, whatever batch it is in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odelt_eqx.draws import normal
from odelt_eqx.sharding import evenly, whole


@partial(jax.jit, static_argnames="shape")
def noise_of(
    seed: int | Int[Array, ""],
    places: Int[Array, " batch"] | Int[np.ndarray, " batch"],
    shape: tuple[int, ...],
) -> Float[Array, "batch height width channels"]:
    """Return standard normal noise for the pictures at some places of an endless row of them.

    That of one picture depends on the seed and its place alone: not on the others in its batch, how
    many there are, or how many devices draw them.

    Args:
        seed: decides the row.
        places: which pictures, from 0.
        shape: (height, width, channels) of one.
    """
    key = jax.random.key(seed)
    draw = lambda place: normal(jax.random.fold_in(key, place), shape)
    return whole(jax.vmap(draw)(evenly(whole(jnp.asarray(places)))))
