"""Embeddings of times, conditions and positions, and patches."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Classes, Condition, ConditionType, Guidance, Vector
from odelt_eqx.images import ImageSize, height_width
from odelt_eqx.nn.layers import affine, embedding, linear

FREQUENCIES = 256
"""Width of the cos|sin features of a scalar."""


class ScalarEmbedding(eqx.Module):
    """A scalar (the time, or the step index) as a vector: cos|sin features, dense, SiLU, dense.

    The scalar enters unscaled, with periods from 2 pi to 2 pi x 10,000 (GLIDE, arXiv 2112.10741).
    """

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, width: int, *, key: Key[Array, ""]):
        """Draw both weights from N(0, 0.02^2)."""
        hidden_key, out_key = jax.random.split(key)
        init = jax.nn.initializers.normal(0.02)
        self.hidden = linear(FREQUENCIES, width, hidden_key, init)
        self.out = linear(width, width, out_key, init)

    def __call__(self, value: Float[Array, ""]) -> Float[Array, " width"]:
        """Embed a scalar."""
        half = FREQUENCIES // 2
        angles = value * jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])
        return affine(self.out, jax.nn.silu(affine(self.hidden, features)))


class VectorEmbedding(eqx.Module):
    """A vector of numbers as a vector of the network's width; one for NaN, the null vector."""

    linear: eqx.nn.Linear
    null: Float[Array, " width"]

    def __init__(self, size: int, width: int, *, key: Key[Array, ""]):
        """Draw the weights; the null vector is embedded as zero at first."""
        self.linear = linear(size, width, key)
        self.null = jnp.zeros(width, jnp.float32)

    def __call__(self, vectors: Float[Array, "batch size"]) -> Float[Array, "batch width"]:
        """Embed each row."""
        null = jnp.isnan(vectors).any(axis=1, keepdims=True)
        return jnp.where(null, self.null, affine(self.linear, jnp.where(null, 0, vectors)))


class GuidanceEmbedding(eqx.Module):
    """The sum of the embeddings of the logarithm of a weight, and of the times where it acts."""

    weight: ScalarEmbedding
    start: ScalarEmbedding
    end: ScalarEmbedding

    def __init__(self, width: int, *, key: Key[Array, ""]):
        """Draw the weights."""
        weight_key, start_key, end_key = jax.random.split(key, 3)
        self.weight = ScalarEmbedding(width, key=weight_key)
        self.start = ScalarEmbedding(width, key=start_key)
        self.end = ScalarEmbedding(width, key=end_key)

    def __call__(self, guidance: Guidance) -> Float[Array, "batch width"]:
        """Embed the guidance of each example."""
        weight, start, end = map(jnp.asarray, (guidance.weight, guidance.start, guidance.end))
        times = jax.vmap(self.start)(start) + jax.vmap(self.end)(end)
        return times + jax.vmap(self.weight)(jnp.log(weight))


class ConditionEmbedding(eqx.Module):
    """The sum `c` of the embeddings of time, step and condition, which modulates every block.

    That of the guidance is added where the network is told.
    """

    time: ScalarEmbedding
    step: ScalarEmbedding
    condition: eqx.nn.Embedding | VectorEmbedding | None
    guidance: GuidanceEmbedding | None

    def __init__(
        self,
        width: int,
        condition_type: ConditionType | None,
        *,
        keys: tuple[Key[Array, ""], Key[Array, ""], Key[Array, ""]],
    ):
        """Draw the weights from one key each: time, step, condition."""
        time_key, step_key, key = keys
        self.time = ScalarEmbedding(width, key=time_key)
        self.step = ScalarEmbedding(width, key=step_key)
        self.condition = None
        if isinstance(condition_type, Classes):
            self.condition = embedding(condition_type.count + 1, width, key)
        elif isinstance(condition_type, Vector):
            self.condition = VectorEmbedding(condition_type.size, width, key=key)
        self.guidance = None
        if condition_type is not None and condition_type.max_guidance is not None:
            self.guidance = GuidanceEmbedding(width, key=jax.random.fold_in(key, 1))

    def __call__(
        self,
        t: Float[Array, " batch"],
        step_index: Float[Array, " batch"],
        condition: Condition | None,
        guidance: Guidance | None = None,
    ) -> Float[Array, "batch width"]:
        """Return `c` of each example."""
        c = jax.vmap(self.time)(t) + jax.vmap(self.step)(step_index)
        if self.guidance is not None and guidance is not None:
            c = c + self.guidance(guidance)
        if self.condition is None or condition is None:
            return c
        if isinstance(self.condition, VectorEmbedding):
            return c + self.condition(condition)
        return c + self.condition.weight[condition]


@functools.cache
def position_table(grid: ImageSize, width: int) -> np.ndarray:
    """Return the fixed 2-D sin|cos table of a grid of (rows, columns), (rows * columns, width).

    The first half of the width encodes the column, the second the row (ViT's table, as MAE
    writes it, arXiv 2111.06377).
    """
    frequency = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float32) / (width / 4))
    rows, columns = height_width(grid)
    row, column = np.divmod(np.arange(rows * columns, dtype=np.float32), columns)
    angles = [position[:, None] * frequency for position in (column, row)]
    table = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(table, axis=1).astype(np.float32)


@functools.cache
def rotary_table(grid: ImageSize, size: int) -> np.ndarray:
    """Return the cosines and the sines of the angles of `rotate`, (2, rows * columns, size / 2)."""
    frequency = 1 / 10_000 ** (np.arange(size // 4) / (size // 4))
    rows, columns = height_width(grid)
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = np.concatenate([place[:, None] * frequency for place in (row, column)], axis=1)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(
    x: Float[Array, "*heads tokens size"], grid: ImageSize
) -> Float[Array, "*heads tokens size"]:
    """Return queries or keys rotated by their places in a grid of (rows, columns), float32.

    Values `i` and `i + size / 2` are a pair, which turns by the place times `10_000 ** -(4 i /
    size)`: by the row for the first half of the pairs, by the column for the second. So a product
    of a query and a key depends on how far apart they are in both, and not on where.

    Source: RoPE, arXiv 2104.09864, along two axes as in EVA-02, arXiv 2303.11331.

    Args:
        x: values of each token, as many as four divides.
        grid: the tokens are its places, row by row.
    """
    cos, sin = rotary_table(grid, x.shape[-1])
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.broadcast_to(cos, a.shape), jnp.broadcast_to(sin, a.shape)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def patchify(
    image: Float[Array, "height width channels"], size: int
) -> Float[Array, "tokens values"]:
    """Cut an image into `size` x `size` patches, row by row, each flattened."""
    rows, columns, channels = image.shape[0] // size, image.shape[1] // size, image.shape[2]
    cut = image.reshape(rows, size, columns, size, channels).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows * columns, size * size * channels)


def unpatchify(
    tokens: Float[Array, "tokens values"], size: int, grid: ImageSize | None = None
) -> Float[Array, "height width channels"]:
    """Join patches: the inverse of `patchify`; `grid` is (rows, columns), by default a square."""
    rows, columns = height_width(round(tokens.shape[0] ** 0.5) if grid is None else grid)
    channels = tokens.shape[1] // size**2
    cut = tokens.reshape(rows, columns, size, size, channels).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows * size, columns * size, channels)
