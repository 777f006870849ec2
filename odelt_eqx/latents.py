"""Shards of pictures to shards of what an autoencoder makes of them."""

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16, UInt8

from odelt_eqx.data.chunks import ShardFile
from odelt_eqx.data.prepare import PLAN, PrepareConfig, prepare, share_of, writing
from odelt_eqx.data.records import INDEX, VERSION, Index, Layout, load_index, save_index
from odelt_eqx.data.shards import Records
from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.nn.autoencoder import Autoencoder
from odelt_eqx.progress import Progress
from odelt_eqx.sharding import evenly, make_mesh, placed, whole

PICTURES = "pictures"
"""Folder, among the shards of latents, of the shards of pictures that they are of."""


def prepare_latents(
    source: Path, out: Path, config: PrepareConfig, autoencoder: Autoencoder, batch_size: int = 16
) -> list[Path]:
    """Write the latents of pictures, and of their mirror images, as shards.

    The pictures are prepared in `out / "pictures"` first, unless they are shards already. Finished
    files are kept, so an interrupted job goes on where it was. Where the work is shared out, the
    parts encode once all have prepared their pictures: run them a second time.

    Args:
        source: a folder of shards of pictures, or what `odelt_eqx.data.prepare.prepare` takes.
        out: folder of the shards; a record is float16, see `odelt_eqx.data.records`.
        config: how pictures are prepared, and which part of the work is done here.
        autoencoder: gives mean and log-variance.
        batch_size: pictures that it is shown at once, on all devices together.

    Returns:
        `index.json` of the latents, or what `prepare` returns while other parts are to be done.

    Raises:
        InputError: the pictures cannot be prepared or encoded, or `out` holds something else.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    pictures = source
    if not (source / INDEX).is_file():
        pictures = out / PICTURES
        paths = prepare(source, pictures, config)
        if not (pictures / INDEX).is_file():
            return paths
    index = load_index(pictures)
    layout = _layout(index, pictures, autoencoder)
    _begin(out, index, autoencoder)
    which, of = share_of(config.part)
    every = [(name, count) for files in index.shards.values() for name, count in files.items()]
    own = sorted(every)[which::of]
    missing = [(name, count) for name, count in own if not (out / name).is_file()]
    total, left = (sum(count for _, count in files) for files in (own, missing))
    mesh = make_mesh("dp")
    autoencoder = placed(autoencoder, mesh)
    progress = Progress("encode", total, total - left)
    with writing(out), jax.set_mesh(mesh), progress:
        for name, count in missing:
            records = Records(pictures, {name: count})
            _encode(records, index.layout, layout, out / name, autoencoder, batch_size, progress)
    if not all((out / name).is_file() for name, _ in every):
        return []
    made = Index(VERSION, layout, index.class_names, index.shards, index.classes, index.held_out, 0)
    save_index(made, out)
    return [out / INDEX]


def _layout(index: Index, pictures: Path, autoencoder: Autoencoder) -> Layout:
    size, reduction = index.layout.shape[0], autoencoder.config.reduction
    if index.layout.kind != "pictures" or index.layout.shape[2] != 3 or size % reduction:
        raise InputError(
            f"{pictures} holds {index.layout.kind} {index.layout.shape}; the autoencoder takes "
            f"pictures whose size is a multiple of {reduction}, in 3 channels"
        )
    side = size // reduction
    return Layout("latents", "float16", (2, side, side, 2 * autoencoder.config.latent_channels))


def _begin(out: Path, index: Index, autoencoder: Autoencoder) -> None:
    """Make the folder, or check that it is these pictures and weights that it was begun with."""
    fingerprint = blake2b(repr((index, autoencoder.config)).encode(), digest_size=16)
    for leaf in jax.tree.leaves(eqx.filter(autoencoder, eqx.is_array)):
        fingerprint.update(np.asarray(leaf).tobytes())
    plan = json.dumps({"version": VERSION, "latents": fingerprint.hexdigest()}) + "\n"
    path = out / PLAN
    with writing(out):
        if path.is_file():
            if path.read_text() != plan:
                raise InputError(
                    f"{out} was begun with other pictures or another autoencoder; choose another "
                    "folder"
                )
            return
        if out.is_file() or (out.is_dir() and {p.name for p in out.iterdir()} - {PICTURES}):
            raise InputError(f"{out} exists and is no folder of latents; choose another")
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_text(plan)


def _encode(
    records: Records,
    pictures: Layout,
    latents: Layout,
    path: Path,
    autoencoder: Autoencoder,
    batch_size: int,
    progress: Progress,
) -> None:
    """Write a shard of latents, whole or not at all."""
    with ShardFile(path) as file:
        for first in range(0, len(records), batch_size):
            batch = [records[i] for i in range(first, min(first + batch_size, len(records)))]
            items = [pictures.unpack(record) for record in batch]
            moments = _moments(autoencoder, [values for _, values in items], batch_size)
            for record, (label, _), values in zip(batch, items, moments, strict=False):
                file.write(latents.pack(label, values, pictures.name(record)))
            progress.advance(len(batch))
        file.keep()


def _moments(
    autoencoder: Autoencoder, images: Sequence[UInt8[np.ndarray, "height width 3"]], count: int
) -> Iterator[Float16[np.ndarray, "2 h w moments"]]:
    """Yield mean and log-variance of each of `count` images and of its mirror image.

    One program encodes all batches: where there are fewer images, the first ones come again.
    """
    pixels = np.resize(np.stack(images), (count, *images[0].shape))
    return iter(np.asarray(_both_moments(autoencoder, jnp.asarray(pixels))))


@eqx.filter_jit
def _both_moments(
    autoencoder: Autoencoder, pixels: UInt8[Array, "batch height width 3"]
) -> Float16[Array, "batch 2 h w moments"]:
    """Return mean and log-variance of images and of their mirror images, on all devices."""
    images = evenly(whole(pixels)).astype(jnp.float32) / 127.5 - 1
    both = [autoencoder.encode(shown) for shown in (images, images[:, :, ::-1])]
    moments = jnp.stack([jnp.concatenate(pair, axis=-1) for pair in both], axis=1)
    return whole(moments.astype(jnp.float16))
