"""Standard normal noise, drawn so that it compiles fast and does not depend on the batch."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.parallel import constrain_batch, replicate


def normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return `jax.random.normal(key, shape)`, bit for bit.

    It is drawn in one dimension: XLA's CPU backend takes six times as long to compile the draw of
    a batch of images in their own shape.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


@partial(jax.jit, static_argnames="shape")
def sample_noise(
    seed: int | Int[Array, ""],
    indices: Int[Array, " batch"] | Int[np.ndarray, " batch"],
    shape: tuple[int, ...],
) -> Float[Array, "batch *shape"]:
    """Return the noise of the samples with these indices, (batch, *shape).

    That of one sample depends on the seed and its index alone: not on the rest of the batch, nor
    on the number of devices.

    Args:
        seed: decides the noise of all samples.
        indices: which samples, from 0.
        shape: shape of one sample.
    """
    key = jax.random.key(seed)
    draw = lambda index: normal(jax.random.fold_in(key, index), shape)
    return replicate(jax.vmap(draw)(constrain_batch(replicate(jnp.asarray(indices)))))


@jax.jit
def sample_keys(
    seed: int | Int[Array, ""], indices: Int[Array, " batch"] | Int[np.ndarray, " batch"]
) -> Key[Array, " batch"]:
    """Return a key for what else is drawn for the samples of `sample_noise`, on their way."""
    key = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.fold_in(key, index), 1))(indices)
