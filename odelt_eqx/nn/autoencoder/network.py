"""The autoencoder."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError, check_range
from odelt_eqx.nn.autoencoder.layers import (
    Downsampler,
    GroupNorm,
    Level,
    MiddleLevel,
    Upsampler,
    make_levels,
)
from odelt_eqx.nn.convolution import Convolution, convolution

LOG_VARIANCES = (-30.0, 20.0)
"""Bounds of the encoder's log-variance, before scaling."""


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an `Autoencoder`; names and defaults are those of Stable Diffusion's.

    Args:
        block_out_channels: width of each level, from the image inwards; each level but the last
            halves the resolution.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        norm_num_groups: groups of the group norms.
        latent_channels: channels of a latent.
        scaling_factor: a latent is the encoder's output times this, of about unit variance.

    Raises:
        InputError: a size is not positive, or a width is not a multiple of the groups.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        check_range(self, "layers_per_block", "norm_num_groups", "latent_channels", least=1)
        check_range(self, "scaling_factor", above=0)
        widths, groups = self.block_out_channels, self.norm_num_groups
        if not widths or any(width < 1 or width % groups for width in widths):
            raise InputError(
                f"block_out_channels must be multiples of norm_num_groups {groups}; got {widths}"
            )

    @property
    def reduction(self) -> int:
        """Pixels per latent cell along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


class Encoder(eqx.Module):
    """Images to the moments of their latents."""

    conv_in: Convolution
    down_blocks: tuple[Level, ...]
    mid_block: MiddleLevel
    conv_norm_out: GroupNorm
    conv_out: Convolution

    def __init__(self, config: AutoencoderConfig, *, key: Key[Array, ""]):
        first, levels, middle, last = jax.random.split(key, 4)
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = convolution(3, widths[0], 3, first)
        self.down_blocks = make_levels(widths, config.layers_per_block, groups, Downsampler, levels)
        self.mid_block = MiddleLevel(widths[-1], groups, key=middle)
        self.conv_norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = convolution(widths[-1], 2 * config.latent_channels, 3, last)

    def __call__(self, x: Float[Array, "batch h w 3"]) -> Float[Array, "batch h2 w2 moments"]:
        """Return mean and log-variance, concatenated along the channels."""
        for layer in (self.conv_in, *self.down_blocks, self.mid_block):
            x = layer(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(eqx.Module):
    """Latents to images."""

    conv_in: Convolution
    mid_block: MiddleLevel
    up_blocks: tuple[Level, ...]
    conv_norm_out: GroupNorm
    conv_out: Convolution

    def __init__(self, config: AutoencoderConfig, *, key: Key[Array, ""]):
        first, levels, middle, last = jax.random.split(key, 4)
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = convolution(config.latent_channels, widths[0], 3, first)
        self.mid_block = MiddleLevel(widths[0], groups, key=middle)
        self.up_blocks = make_levels(widths, config.layers_per_block + 1, groups, Upsampler, levels)
        self.conv_norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = convolution(widths[-1], 3, 3, last)

    def __call__(self, x: Float[Array, "batch h w latent"]) -> Float[Array, "batch h2 w2 3"]:
        """Return images."""
        for layer in (self.conv_in, self.mid_block, *self.up_blocks):
            x = layer(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Autoencoder(eqx.Module):
    """Stable Diffusion's variational autoencoder, images to latents and back.

    Latents are scaled everywhere outside this class: only `encode` multiplies by the config's
    `scaling_factor`, and only `decode` divides by it. So latents that are stored, trained on and
    sampled have about unit variance.

    Source: arXiv 2112.10752; the architecture is that of diffusers' `AutoencoderKL`.
    """

    encoder: Encoder
    quant_conv: Convolution
    post_quant_conv: Convolution
    decoder: Decoder
    config: AutoencoderConfig = eqx.field(static=True)

    def __init__(self, config: AutoencoderConfig, *, key: Key[Array, ""]):
        encoder, decoder, quant, post_quant = jax.random.split(key, 4)
        moments, channels = 2 * config.latent_channels, config.latent_channels
        self.encoder = Encoder(config, key=encoder)
        self.quant_conv = convolution(moments, moments, 1, quant)
        self.post_quant_conv = convolution(channels, channels, 1, post_quant)
        self.decoder = Decoder(config, key=decoder)
        self.config = config

    @eqx.filter_jit
    def encode(
        self, images: Float[Array, "batch height width 3"]
    ) -> tuple[Float[Array, "batch h w channels"], Float[Array, "batch h w channels"]]:
        """Return mean and log-variance of the (scaled) latents of images.

        Args:
            images: in [-1, 1]; height and width are multiples of the config's `reduction`.

        Returns:
            Both (batch, height / reduction, width / reduction, latent channels). The network's
            log-variance is clipped to [-30, 20] before it is scaled.

        Raises:
            InputError: height or width is not such a multiple.
        """
        reduction, scale = self.config.reduction, self.config.scaling_factor
        if images.shape[1] % reduction or images.shape[2] % reduction:
            raise InputError(
                f"images must be multiples of {reduction} pixels high and wide; "
                f"got {images.shape[1]} x {images.shape[2]}"
            )
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1)
        return scale * mean, jnp.clip(log_variance, *LOG_VARIANCES) + 2 * np.log(scale).item()

    @eqx.filter_jit
    def draw_latents(
        self, images: Float[Array, "batch height width 3"], key: Key[Array, ""]
    ) -> Float[Array, "batch h w channels"]:
        """Return one sample of the (scaled) latents of images; see `encode`."""
        mean, log_variance = self.encode(images)
        return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)

    @eqx.filter_jit
    def decode(
        self, latents: Float[Array, "batch h w channels"]
    ) -> Float[Array, "batch height width 3"]:
        """Return the images of (scaled) latents, roughly in [-1, 1], not clipped.

        Args:
            latents: (batch, h, w, latent channels).

        Raises:
            InputError: the latents have another number of channels.
        """
        if latents.shape[-1] != self.config.latent_channels:
            raise InputError(
                f"latents must have {self.config.latent_channels} channels; got {latents.shape[-1]}"
            )
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))
