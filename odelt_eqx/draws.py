"""Random pictures that compile fast."""

import math

import jax
from jaxtyping import Array, Float, Key


def normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return what `jax.random.normal(key, shape)` does, to the bit.

    It is drawn in one dimension: XLA's CPU backend takes six times as long to compile the draw of a
    batch of pictures as such.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)
