"""Latents that other repositories have stored, as shards that training reads."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Shaped

from odelt_eqx.data.prepare import PrepareConfig, find_items, write_items
from odelt_eqx.data.records import Layout
from odelt_eqx.errors import InputError, reason
from odelt_eqx.interop.latent_files import STATISTICS, StoredLatents, find_latents
from odelt_eqx.nn.autoencoder import LOG_VARIANCES, AutoencoderConfig, PerChannel, check_factors


def import_latents(
    source: Path,
    out: Path,
    config: PrepareConfig,
    scaling_factor: PerChannel | None = None,
    shift_factor: PerChannel = 0.0,
) -> list[Path]:
    """Write stored latents as shards, as `odelt_eqx.data.prepare.prepare` does images.

    A mean and a standard deviation become a mean and a log-variance; a sample becomes the mean of a
    distribution without variance, the least that the autoencoder knows. Where the latents of mirror
    images are missing, training on the shards does not flip: the mirror image of a latent is not
    the latent of a mirror image.

    Args:
        source: a folder or file, see `odelt_eqx.interop.latent_files`.
        out: folder of the shards; a record is float16, see `odelt_eqx.data.records`.
        config: how to write them; what it says of images is not used.
        scaling_factor: latents are (stored - shift_factor) * scaling_factor. By default both are
            what the source says, or Stable Diffusion's for the means of 4 channels.
        shift_factor: see `scaling_factor`, which it needs.

    Returns:
        See `odelt_eqx.data.prepare.prepare`.

    Raises:
        InputError: the source cannot be read, does not say how it is scaled, or too many of its
            latents cannot be used; `out` contains something else or cannot be written.
    """
    if scaling_factor is None and shift_factor != 0:
        raise InputError(f"shift_factor needs a scaling_factor; got {shift_factor} and none")
    find = partial(find_latents, label=config.label, renumber=config.renumber)
    first, *others = found = find_items(source, out, config, find)
    if any(other.moments != first.moments for other in others):
        raise InputError(f"{config.held_out_source} and {source} hold latents of different kinds")
    views, stored, height, width = shape = _find_shape(first)
    channels = stored // 2 if first.moments else stored
    factors = (scaling_factor, shift_factor) if scaling_factor is not None else first.factors
    if factors is None:
        if not first.moments or channels != AutoencoderConfig.latent_channels:
            raise InputError(
                f"{source} does not say how its latents of {channels} channels are scaled: give "
                "scaling_factor, as in --scaling-factor 1.5305 --shift-factor 0.0609 (Stable "
                f"Diffusion 3), or {STATISTICS} beside arrays"
            )
        factors = AutoencoderConfig.scaling_factor, AutoencoderConfig.shift_factor
    check_factors(*factors, channels)
    if views == 1:
        warnings.warn(
            f"{source} has no latents of mirror images: training on {out} does not flip",
            stacklevel=2,
        )
    layout = Layout("latents", "float16", (views, height, width, 2 * channels))
    encode = partial(_encode, shape, first.moments, factors)
    plan = {"shape": layout.shape, "scaling_factor": factors[0], "shift_factor": factors[1]}
    return write_items([one.items for one in found], layout, encode, out, config, plan)


def _find_shape(found: StoredLatents) -> tuple[int, ...]:
    """Return the shape of the first latent that can be read."""
    items, problem = found.items, ""
    for location in items.locations[:16]:
        try:
            shape = items.read(location).shape
        except Exception as error:  # a damaged file raises anything; the shards' report lists it
            problem = reason(error)
            continue
        _, channels, height, width = shape
        if channels == height != width < channels:
            raise InputError(
                f"{items.path} has latents {shape[1:]}, with channels last; store them first: "
                "numpy.moveaxis(latents, -1, -3)"
            )
        if found.moments and channels % 2:
            raise InputError(
                f"{items.path} has {channels} channels: no means and as many standard deviations"
            )
        return shape
    raise InputError(f"{items.path}: none of the latents that were tried can be read: {problem}")


def _encode(
    shape: tuple[int, ...],
    moments: bool,
    factors: tuple[PerChannel, PerChannel],
    stored: Shaped[np.ndarray, "views channels h w"],
) -> Float16[np.ndarray, "views h w moments"]:
    """Return the values of a record."""
    if stored.shape != shape:
        raise InputError(f"its shape is {stored.shape[1:]}, that of others {shape[1:]}")
    if stored.dtype.kind in "bcmMSU":
        raise InputError(f"its elements are {stored.dtype}, not real numbers")
    values = np.moveaxis(stored.astype(np.float64), 1, -1)
    if not np.isfinite(values).all():
        raise InputError("it has values that are not finite")
    scale, shift = map(np.asarray, factors)
    mean, log_variance = values, np.full_like(values, LOG_VARIANCES[0])
    if moments:
        mean, std = np.split(values, 2, axis=-1)
        if std.min() < 0:
            raise InputError("it has a negative standard deviation")
        with np.errstate(divide="ignore"):
            log_variance = np.clip(2 * np.log(std), *LOG_VARIANCES) + 2 * np.log(scale)
    record = np.concatenate([(mean - shift) * scale, log_variance], axis=-1)
    if np.abs(record).max() > np.finfo(np.float16).max:
        raise InputError("it has values that are too large; give another scaling_factor")
    return record.astype(np.float16)
