"""The parts of the autoencoder; their fields have the names in the published files."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.nn.convolution import Convolution, convolution
from odelt_eqx.nn.layers import affine, linear

EPSILON = 1e-6
"""Added to the variance of every group norm."""


class GroupNorm(eqx.Module):
    """Group norm with scale and shift over (batch, height, width, channels)."""

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)

    def __init__(self, channels: int, groups: int):
        self.weight, self.bias, self.groups = jnp.ones(channels), jnp.zeros(channels), groups

    def __call__(self, x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h w channels"]:
        """Normalise each group of channels of each image."""
        grouped = x.reshape(*x.shape[:3], self.groups, -1)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + EPSILON)
        return normal.reshape(x.shape) * self.weight + self.bias


class ResidualBlock(eqx.Module):
    """Norm, SiLU and convolution, twice, added to the input; projected where the width changes."""

    norm1: GroupNorm
    conv1: Convolution
    norm2: GroupNorm
    conv2: Convolution
    conv_shortcut: Convolution | None

    def __init__(self, inputs: int, outputs: int, groups: int, *, key: Key[Array, ""]):
        one, two, shortcut = jax.random.split(key, 3)
        self.norm1, self.norm2 = GroupNorm(inputs, groups), GroupNorm(outputs, groups)
        self.conv1 = convolution(inputs, outputs, 3, one)
        self.conv2 = convolution(outputs, outputs, 3, two)
        changes = inputs != outputs
        self.conv_shortcut = convolution(inputs, outputs, 1, shortcut) if changes else None

    def __call__(self, x: Float[Array, "batch h w in"]) -> Float[Array, "batch h w out"]:
        """Transform a batch."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(eqx.Module):
    """Single-head self-attention over all positions, added to the input."""

    group_norm: GroupNorm
    to_q: eqx.nn.Linear
    to_k: eqx.nn.Linear
    to_v: eqx.nn.Linear
    to_out: tuple[eqx.nn.Linear]

    def __init__(self, width: int, groups: int, *, key: Key[Array, ""]):
        q, k, v, out = (linear(width, width, key) for key in jax.random.split(key, 4))
        self.group_norm = GroupNorm(width, groups)
        self.to_q, self.to_k, self.to_v, self.to_out = q, k, v, (out,)

    def __call__(self, x: Float[Array, "batch h w width"]) -> Float[Array, "batch h w width"]:
        """Transform a batch."""
        cells = self.group_norm(x).reshape(len(x), -1, 1, x.shape[-1])
        q, k, v = (affine(layer, cells) for layer in (self.to_q, self.to_k, self.to_v))
        mixed = jax.nn.dot_product_attention(q, k, v)
        return x + affine(self.to_out[0], mixed).reshape(x.shape)


class Downsampler(eqx.Module):
    """A convolution with stride 2, padded on the far sides only."""

    conv: Convolution

    def __call__(self, x: Float[Array, "batch h w width"]) -> Float[Array, "batch h2 w2 width"]:
        """Halve height and width."""
        return self.conv(x, 2, [(0, 1), (0, 1)])


class Upsampler(eqx.Module):
    """Nearest-neighbour enlargement, then a convolution."""

    conv: Convolution

    def __call__(self, x: Float[Array, "batch h w width"]) -> Float[Array, "batch h2 w2 width"]:
        """Double height and width."""
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


class Level(eqx.Module):
    """Residual blocks of one resolution, then at most one sampler to the next."""

    resnets: tuple[ResidualBlock, ...]
    downsamplers: tuple[Downsampler, ...]
    upsamplers: tuple[Upsampler, ...]

    def __init__(
        self,
        inputs: int,
        outputs: int,
        count: int,
        groups: int,
        sampler: type[Downsampler] | type[Upsampler] | None,
        *,
        key: Key[Array, ""],
    ):
        sampling, *keys = jax.random.split(key, count + 1)
        self.resnets = tuple(
            ResidualBlock(outputs if i else inputs, outputs, groups, key=key)
            for i, key in enumerate(keys)
        )
        conv = convolution(outputs, outputs, 3, sampling)
        self.downsamplers = (Downsampler(conv),) if sampler is Downsampler else ()
        self.upsamplers = (Upsampler(conv),) if sampler is Upsampler else ()

    def __call__(self, x: Float[Array, "batch h w in"]) -> Float[Array, "batch h2 w2 out"]:
        """Apply the blocks, then the sampler."""
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class MiddleLevel(eqx.Module):
    """The innermost level: residual block, attention, residual block."""

    resnets: tuple[ResidualBlock, ResidualBlock]
    attentions: tuple[Attention]

    def __init__(self, width: int, groups: int, *, key: Key[Array, ""]):
        first, middle, last = jax.random.split(key, 3)
        self.resnets = (
            ResidualBlock(width, width, groups, key=first),
            ResidualBlock(width, width, groups, key=last),
        )
        self.attentions = (Attention(width, groups, key=middle),)

    def __call__(self, x: Float[Array, "batch h w width"]) -> Float[Array, "batch h w width"]:
        """Transform a batch."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


def make_levels(
    widths: Sequence[int],
    count: int,
    groups: int,
    sampler: type[Downsampler] | type[Upsampler],
    key: Key[Array, ""],
) -> tuple[Level, ...]:
    """Return one level per width; all but the last end in the sampler."""
    inputs, samplers = (widths[0], *widths[:-1]), [sampler] * (len(widths) - 1) + [None]
    keys = jax.random.split(key, len(widths))
    return tuple(
        Level(i, o, count, groups, sampler, key=key)
        for i, o, sampler, key in zip(inputs, widths, samplers, keys, strict=True)
    )
