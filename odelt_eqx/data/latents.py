"""Images to latents and back: shards of latents, and decoding in chunks."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, UInt8

from odelt_eqx.data.prepare import PrepareConfig, part_slice, prepare, start_folder
from odelt_eqx.data.records import INDEX, Index, Layout, Records, load_index, write_shard
from odelt_eqx.errors import InputError
from odelt_eqx.files import fingerprint, write_errors, write_json
from odelt_eqx.nn.autoencoder import Autoencoder
from odelt_eqx.parallel import constrain_batch, make_mesh, mesh_size, place, replicate
from odelt_eqx.progress import Progress
from odelt_eqx.serialize import to_dict

IMAGES = "images"
"""Folder, among the shards of latents, of the shards of images that they encode."""


def prepare_latents(
    source: Path, out: Path, config: PrepareConfig, autoencoder: Autoencoder, batch_size: int = 16
) -> list[Path]:
    """Write the latents of images, and of their mirror images, as shards.

    The images are prepared in `out / "images"` first, unless they are shards already. Finished
    shards are not written again, so an interrupted job resumes. Where the work is shared out, the
    parts encode once all have prepared their images: run them a second time.

    Args:
        source: a folder of shards of images, or a source of `odelt_eqx.data.prepare.prepare`.
        out: folder of the shards; a record is float16, see `odelt_eqx.data.records`.
        config: how to prepare the images, and which part of the work to do.
        autoencoder: gives mean and log-variance.
        batch_size: images to encode at a time, on all devices together.

    Returns:
        The path of the latents' `index.json`; while other parts are unfinished, what `prepare`
        returns, or nothing.

    Raises:
        InputError: the images cannot be prepared or encoded, or `out` contains something else.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    images = source
    if not (source / INDEX).is_file():
        images = out / IMAGES
        paths = prepare(source, images, config)
        if not (images / INDEX).is_file():
            return paths
    index = load_index(images)
    layout = _latent_layout(index, images, autoencoder)
    weights = fingerprint(autoencoder.config, autoencoder)
    start_folder(out, {"images": fingerprint(index), "autoencoder": weights}, ignored=(IMAGES,))
    shards = {name: n for files in index.shards.values() for name, n in files.items()}
    own = sorted(shards)[part_slice(config.part)]
    missing = [name for name in own if not (out / name).is_file()]
    total, left = (sum(shards[name] for name in names) for names in (own, missing))
    mesh = make_mesh("dp")
    autoencoder = place(autoencoder, mesh)
    progress = Progress("encode", total, total - left)
    with write_errors(out), jax.set_mesh(mesh), progress:
        for name in missing:
            records = Records(images, {name: shards[name]})
            with write_shard(out / name) as write:
                for first in range(0, len(records), batch_size):
                    last = min(first + batch_size, len(records))
                    batch = [index.layout.unpack(records[i]) for i in range(first, last)]
                    # One compiled program encodes all batches: the last repeats its images.
                    pixels = np.stack([values for _, values, _ in batch])
                    pixels = np.resize(pixels, (batch_size, *pixels.shape[1:]))
                    moments = np.asarray(_moments(autoencoder, jnp.asarray(pixels)))
                    for (label, _, item), values in zip(batch, moments, strict=False):
                        write(layout.pack(label, values, item))
                    progress.advance(len(batch))
        if not all((out / name).is_file() for name in shards):
            return []
        index = dataclasses.replace(index, layout=layout, skipped=0)
        write_json(out / INDEX, to_dict(index))
    return [out / INDEX]


def _latent_layout(index: Index, images: Path, autoencoder: Autoencoder) -> Layout:
    """Return the layout of the latents of images."""
    kind, shape, reduction = index.layout.kind, index.layout.shape, autoencoder.config.reduction
    if kind != "images" or shape[2] != 3 or any(n % reduction for n in shape[:2]):
        raise InputError(
            f"{images} holds {kind} {shape}; the autoencoder takes images whose size is a multiple "
            f"of {reduction}, in 3 channels"
        )
    height, width, moments = *shape[:2], 2 * autoencoder.config.latent_channels
    return Layout("latents", "float16", (2, height // reduction, width // reduction, moments))


@eqx.filter_jit
def _moments(
    autoencoder: Autoencoder, pixels: UInt8[Array, "batch height width 3"]
) -> Float16[Array, "batch 2 h w moments"]:
    """Return mean and log-variance of images and of their mirror images, on all devices."""
    images = constrain_batch(replicate(pixels)).astype(jnp.float32) / 127.5 - 1
    both = [autoencoder.encode(x) for x in (images, images[:, :, ::-1])]
    moments = jnp.stack([jnp.concatenate(pair, axis=-1) for pair in both], axis=1)
    return replicate(moments.astype(jnp.float16))


def decode_in_chunks(
    autoencoder: Autoencoder,
    latents: Float[np.ndarray, "count h w channels"] | Float[Array, "count h w channels"],
    chunk: int = 16,
) -> Float[np.ndarray, "count height width 3"]:
    """Return the images of many (scaled) latents, in host memory.

    Each device of `jax.set_mesh` holds `chunk` of them at a time. One compiled program decodes all
    chunks: in the last, latents are repeated.

    Args:
        chunk: latents at a time per device; at 256 x 256 pixels each takes about 0.25 GiB.

    Raises:
        InputError: `chunk` is less than 1, or the latents have another number of channels.
    """
    if chunk < 1:
        raise InputError(f"chunk must be at least 1; got {chunk}")
    count, (h, w), reduction = len(latents), latents.shape[1:3], autoencoder.config.reduction
    images = np.empty((count, h * reduction, w * reduction, 3), np.float32)
    chunk = max(1, min(chunk * mesh_size(), count))
    for start in range(0, count, chunk):
        rows = np.arange(start, min(start + chunk, count))
        decoded = _decode(autoencoder, jnp.asarray(latents[np.resize(rows, chunk)]))
        images[rows] = np.asarray(decoded)[: len(rows)]
    return images


@eqx.filter_jit
def _decode(
    autoencoder: Autoencoder, latents: Float[Array, "batch h w channels"]
) -> Float[Array, "batch height width 3"]:
    """Decode on all devices."""
    return replicate(autoencoder.decode(constrain_batch(replicate(latents))))
