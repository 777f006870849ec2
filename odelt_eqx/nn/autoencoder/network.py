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
from odelt_eqx.serialize import set_declared

MOST_LAYERS, MOST_LEVELS, MOST_WIDTH = 16, 12, 2**14
"""Bounds of an autoencoder, whose config is read from files: a larger one would hang."""
LOG_VARIANCES = (-30.0, 20.0)
"""Bounds of the encoder's log-variance, before scaling."""

PerChannel = float | tuple[float, ...]
"""One number for all channels of a latent, or one for each."""


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an `Autoencoder`; names and defaults are those of Stable Diffusion's.

    | weights | latent_channels | scaling_factor | shift_factor | use_(post_)quant_conv |
    |---|---|---|---|---|
    | Stable Diffusion 1, 2 | 4 | 0.18215 | 0 | yes |
    | Stable Diffusion XL | 4 | 0.13025 | 0 | yes |
    | Stable Diffusion 3 | 16 | 1.5305 | 0.0609 | no |
    | FLUX.1 | 16 | 0.3611 | 0.1159 | no |

    Args:
        block_out_channels: width of each level, from the image inwards; each level but the last
            halves the resolution.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        norm_num_groups: groups of the group norms.
        latent_channels: channels of a latent.
        scaling_factor: see `shift_factor`; one number, or one for each channel.
        shift_factor: a latent, of about unit variance, is (z - shift_factor) * scaling_factor,
            where z is the encoder's output; one number, or one for each channel.
        use_quant_conv: whether a 1 x 1 convolution follows the encoder.
        use_post_quant_conv: whether one precedes the decoder.

    Raises:
        InputError: a size is not a positive whole number, a width is not a multiple of the groups,
            or there are fewer or more factors than channels.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4
    scaling_factor: PerChannel = 0.18215
    shift_factor: PerChannel = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "layers_per_block", "norm_num_groups", "latent_channels", least=1)
        check_range(self, "norm_num_groups", "latent_channels", most=MOST_WIDTH)
        check_range(self, "layers_per_block", most=MOST_LAYERS)
        check_factors(self.scaling_factor, self.shift_factor, self.latent_channels)
        widths, groups = self.block_out_channels, self.norm_num_groups
        if len(widths) > MOST_LEVELS or max(widths, default=1) > MOST_WIDTH:
            raise InputError(
                f"block_out_channels must be at most {MOST_LEVELS} numbers of at most "
                f"{MOST_WIDTH:,}; got {len(widths)} up to {max(widths, default=1):,}"
            )
        if not widths or any(width < 1 or width % groups for width in widths):
            raise InputError(
                f"block_out_channels must be multiples of norm_num_groups {groups}; got {widths}"
            )

    @property
    def reduction(self) -> int:
        """Pixels per latent cell along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


def check_factors(scaling_factor: PerChannel, shift_factor: PerChannel, channels: int) -> None:
    """Raise an InputError unless these scale and shift latents of so many channels."""
    for name, values in {"scaling_factor": scaling_factor, "shift_factor": shift_factor}.items():
        if isinstance(values, tuple) and len(values) != channels:
            raise InputError(f"{name} must be one number or {channels}; got {len(values)}")
        if not np.isfinite(values).all():
            raise InputError(f"{name} must be finite; got {values}")
    if not np.greater(scaling_factor, 0).all():
        raise InputError(f"scaling_factor must be positive; got {scaling_factor}")


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

    Latents are scaled everywhere outside this class: only `encode` applies the config's
    `shift_factor` and `scaling_factor`, and only `decode` inverts them. So latents that are stored,
    trained on and sampled have about unit variance.

    Source: arXiv 2112.10752; the architecture is that of diffusers' `AutoencoderKL`.
    """

    encoder: Encoder
    quant_conv: Convolution | None
    post_quant_conv: Convolution | None
    decoder: Decoder
    config: AutoencoderConfig = eqx.field(static=True)

    def __init__(self, config: AutoencoderConfig, *, key: Key[Array, ""]):
        encoder, decoder, quant, post_quant = jax.random.split(key, 4)
        moments, channels = 2 * config.latent_channels, config.latent_channels
        self.encoder = Encoder(config, key=encoder)
        use_quant, use_post_quant = config.use_quant_conv, config.use_post_quant_conv
        self.quant_conv = convolution(moments, moments, 1, quant) if use_quant else None
        self.post_quant_conv = (
            convolution(channels, channels, 1, post_quant) if use_post_quant else None
        )
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
            InputError: these are no such images, or height or width is not such a multiple.
        """
        reduction = self.config.reduction
        if images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"images must have shape (batch, height, width, 3); got {images.shape}"
            )
        if images.shape[1] % reduction or images.shape[2] % reduction:
            raise InputError(
                f"images must be multiples of {reduction} pixels high and wide; "
                f"got {images.shape[1]} x {images.shape[2]}"
            )
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        shift, scale = jnp.array(self.config.shift_factor), jnp.array(self.config.scaling_factor)
        log_variance = jnp.clip(log_variance, *LOG_VARIANCES)
        return (mean - shift) * scale, log_variance + 2 * jnp.log(scale)

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
            InputError: the latents have another number of axes or channels.
        """
        if latents.ndim != 4:
            raise InputError(
                f"latents must have shape (batch, h, w, {self.config.latent_channels}); "
                f"got {latents.shape}"
            )
        if latents.shape[-1] != self.config.latent_channels:
            raise InputError(
                f"latents must have {self.config.latent_channels} channels; got {latents.shape[-1]}"
            )
        shift, scale = jnp.array(self.config.shift_factor), jnp.array(self.config.scaling_factor)
        z = latents / scale + shift
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
