"""Shards of pictures to shards of their latents: what the autoencoder costs is paid once."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odelt_eqx.data.chunks import ShardWriter
from odelt_eqx.data.prepare import share_of
from odelt_eqx.data.records import INDEX, Index, Layout, load_index, save_index
from odelt_eqx.data.shards import Records
from odelt_eqx.data.source import as_float
from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.interop import load_autoencoder
from odelt_eqx.nn.autoencoder import Autoencoder
from odelt_eqx.progress import Progress
from odelt_eqx.sharding import evenly, make_mesh, placed, whole

PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """How pictures become latents.

    Args:
        autoencoder: weights of Stable Diffusion's autoencoder: see `load_autoencoder`.
        batch_size: pictures encoded at once, on all devices together.
        part: which share of the work is done here: 3/16 is the third of sixteen.
    """

    autoencoder: str
    batch_size: int = 32
    part: str = "1/1"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1; got {self.batch_size}")
        share_of(self.part)


def encode_shards(source: Path, out: Path, config: LatentConfig) -> list[Path]:
    """Write mean and log-variance of every picture, and of its mirror image, as shards of latents.

    Each file of pictures becomes a file of latents of the same name; finished ones are kept, so an
    interrupted job goes on where it was, and several machines may share the work.

    Args:
        source: shards of pictures with three channels.
        out: folder of the shards of latents.
        config: how.

    Returns:
        `index.json`, once all files are there.

    Raises:
        InputError: `source` is no folder of picture shards, the autoencoder does not fit, or `out`
            was begun with others.
    """
    index = load_index(source)
    if index.layout.kind != "pictures" or index.layout.shape[-1] != 3:
        raise InputError(f"{source} must hold pictures with 3 channels; it has {index.layout}")
    autoencoder = load_autoencoder(config.autoencoder)
    layout = _latent_layout(index.layout, autoencoder)
    _begin(out, index, autoencoder)
    files = sorted((n, c, s) for s, own in index.shards.items() for n, c in own.items())
    which, of = share_of(config.part)
    own = files[which::of]
    done = sum(count for name, count, _ in own if (out / name).exists())
    mesh = make_mesh("dp")
    with jax.set_mesh(mesh), Progress("encode", sum(c for _, c, _ in own), done) as progress:
        encode = _encoder(placed(autoencoder, mesh), index.layout, layout, config.batch_size)
        for name, count, _ in own:
            if not (out / name).exists():
                _write(out / name, encode(Records(source, {name: count})), progress)
    if not all((out / name).exists() for name, *_ in files):
        return []
    save_index(dataclasses.replace(index, layout=layout, skipped=0), out)
    return [out / INDEX]


def _latent_layout(pictures: Layout, autoencoder: Autoencoder) -> Layout:
    """Return what a record of latents holds."""
    height, width, _ = pictures.shape
    reduction, channels = autoencoder.config.reduction, autoencoder.config.latent_channels
    if height % reduction or width % reduction:
        raise InputError(
            f"pictures must be multiples of {reduction} pixels high and wide; "
            f"got {height} x {width}"
        )
    return Layout("latents", "float16", (2, height // reduction, width // reduction, 2 * channels))


def _begin(out: Path, index: Index, autoencoder: Autoencoder) -> None:
    """Make the folder, or check that it was begun with the same pictures and autoencoder."""
    weights = blake2b(digest_size=16)
    for leaf in jax.tree.leaves(eqx.filter(autoencoder, eqx.is_array)):
        weights.update(np.asarray(leaf).tobytes())
    pictures = blake2b(repr(index).encode(), digest_size=16)
    plan = {"pictures": pictures.hexdigest(), "autoencoder": weights.hexdigest()}
    path = out / PLAN
    if path.is_file():
        begun = json.loads(path.read_text())
        if different := [name for name in plan if begun.get(name) != plan[name]]:
            raise InputError(
                f"{out} was begun with other {' and '.join(different)}; choose another folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and holds no latents; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(json.dumps(plan, indent=2) + "\n")


Encode = Callable[[Records], Iterator[list[bytes]]]
"""Records of pictures to records of latents, batch by batch."""


def _encoder(
    autoencoder: Autoencoder, pictures: Layout, latents: Layout, batch_size: int
) -> Encode:
    """Return what encodes the records of a file, by a program that is compiled once."""

    @eqx.filter_jit
    def moments(
        autoencoder: Autoencoder, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch 2 h w moments"]:
        images = evenly(whole(images))
        both = [autoencoder.encode(x) for x in (images, images[:, :, ::-1])]
        return whole(jnp.stack([jnp.concatenate(pair, axis=-1) for pair in both], axis=1))

    def encode(records: Records) -> Iterator[list[bytes]]:
        for start in range(0, len(records), batch_size):
            batch = [records[i] for i in range(start, min(start + batch_size, len(records)))]
            labels, pixels = zip(*map(pictures.unpack, batch), strict=True)
            padded = np.resize(np.stack(pixels), (batch_size, *pictures.shape))
            values = np.asarray(moments(autoencoder, jnp.asarray(as_float(padded))))
            names = map(pictures.name, batch)
            rows = zip(labels, values, names, strict=False)  # the rest only fills the batch
            yield [latents.pack(*row) for row in rows]

    return encode


def _write(path: Path, batches: Iterator[list[bytes]], progress: Progress) -> None:
    """Write one file, whole or not at all."""
    file = ShardWriter(path)
    try:
        for batch in batches:
            for record in batch:
                file.write(record)
            progress.advance(len(batch))
        file.keep()
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} cannot be written: {problem}; the same command goes on from there"
        ) from None
    finally:
        file.discard()
