"""Images per second and core of each way to read them, beside a plain Pillow loop."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import tyro
from measure import interleaved
from PIL import Image

from odelt_eqx.data import Folder, HeldOut, Loading, Shards, Source, stream
from odelt_eqx.data.latents import prepare_latents
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.entry import run_command
from odelt_eqx.errors import InputError
from odelt_eqx.nn.autoencoder import Autoencoder, AutoencoderConfig

SHAPE = AutoencoderConfig((4, 4, 4, 4), layers_per_block=1, norm_num_groups=4)
"""A small autoencoder with latents of the published shape: an eighth of the size, 4 channels."""
LOADING = Loading(flip=True, threads=1, buffer=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, on one core.

    Args:
        folder: images to read; by default JPEG files of noise with the spectrum of photographs.
        size: height and width of the examples, in pixels.
        raw_size: width and height of the JPEG files.
        count: number of JPEG files.
        rounds: how often each way is timed.
    """

    folder: Path | None = None
    size: int = 256
    raw_size: tuple[int, int] = (500, 375)
    count: int = 256
    rounds: int = 5


def main(config: Config) -> None:
    """Print the table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with TemporaryDirectory() as scratch:
        folder = config.folder or _write_images(Path(scratch) / "images", config)
        everything = HeldOut(share=0.0)
        options = PrepareConfig(size=config.size, held_out=everything, workers=1, max_failures=1.0)
        preparing = lambda: prepare(folder, Path(TemporaryDirectory(dir=scratch).name), options)
        prepare(folder, Path(scratch) / "shards", options)
        files = Folder(folder, size=config.size, held_out=everything).open("train")
        shards = Shards(Path(scratch) / "shards").open("train")
        reduction = SHAPE.reduction
        if config.size % reduction:
            raise InputError(f"size must be a multiple of {reduction}; got {config.size}")
        network = Autoencoder(SHAPE, key=jax.random.key(0))
        prepare_latents(Path(scratch) / "shards", Path(scratch) / "latents", options, network, 64)
        latents = Shards(Path(scratch) / "latents").open("train")
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        ways: dict[str, Callable[[], Any]] = {
            "plain Pillow loop over the files": lambda: _read_plainly(paths, config.size),
            "`Folder`, one by one": lambda: _read_each(files),
            "`Folder`, the stream": lambda: _read_stream(files, LOADING),
            "`prepare`, one worker": preparing,
            "`Shards`, one by one": lambda: _read_each(shards),
            "`Shards`, the stream": lambda: _read_stream(shards, LOADING),
            "`Shards` of latents, the stream": lambda: _read_stream(latents, LOADING),
        }
        timings = interleaved(ways, next(iter(ways)), config.rounds)
    print(f"{len(files)} images at {config.size} x {config.size}, one core, {config.rounds} rounds")
    print(", ".join(f"{name} {version(name)}" for name in ("pillow", "grain", "array_record")))
    print("\n| way | images per second and core | range | × plain |\n|---|---|---|---|")
    for name, timing in timings.items():
        rates = [len(files) / seconds for seconds in (timing.median, timing.high, timing.low)]
        middle, low, high = (f"{rate:,.0f}" for rate in rates)
        print(f"| {name} | {middle} | {low} to {high} | {1 / timing.ratio:.2f} |")


def _read_plainly(paths: Sequence[Path], size: int) -> None:
    """Open, crop, resize and scale with Pillow and NumPy alone."""
    for path in paths:
        with Image.open(path) as image:
            side, (width, height) = min(image.size), image.size
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
            square = image.convert("RGB").crop(box)
            resized = square.resize((size, size), Image.Resampling.BILINEAR)
            _ = np.asarray(resized, np.float32) / 127.5 - 1


def _read_each(source: Source) -> None:
    for index in range(len(source)):
        _ = source[index]


def _read_stream(source: Source, loading: Loading) -> None:
    """Read an epoch in batches of 8, so that few are read ahead in vain."""
    size = min(8, len(source))
    with closing(stream(source, size, 0, loading=loading)) as batches:
        for _ in range(len(source) // size):
            next(batches)


def _write_images(folder: Path, config: Config) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    width, height = config.raw_size
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / width
    for number in range(config.count):
        noise = np.fft.fft2(rng.standard_normal((3, height, width))) / radius**1.2
        image = np.fft.ifft2(noise).real.transpose(1, 2, 0)
        pixels = 128 + 50 * (image - image.mean()) / image.std()
        file = BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
    return folder


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
