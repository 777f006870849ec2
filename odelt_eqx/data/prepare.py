"""Raw images to shards."""

import dataclasses
import json
import multiprocessing
import os
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from odelt_eqx.data.decode import BadImageError, check_shape, decode_image
from odelt_eqx.data.pipeline import follow_parent
from odelt_eqx.data.raw import RawImages, find_raw_images, find_white
from odelt_eqx.data.records import INDEX, VERSION, Index, Layout, write_shard
from odelt_eqx.data.source import Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError, check_range, reason
from odelt_eqx.files import (
    fingerprint,
    read_json,
    temporary_path,
    write_errors,
    write_json,
    write_text,
)
from odelt_eqx.images import ImageSize, height_width
from odelt_eqx.progress import Progress
from odelt_eqx.serialize import from_dict, to_dict

PLAN, SKIPPED = "plan.json", "skipped.jsonl"
CHUNKS = ".chunks"
"""Folder, among the shards, of the outcome of each finished chunk."""
SPLITS: tuple[Split, ...] = ("train", "held-out")


def count_cores() -> int:
    """Return the number of cores that this process may use, where the system says so, or has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How images become shards.

    Args:
        size: (height, width) of the images, in pixels, or one number for both; see
            `odelt_eqx.data.decode`.
        channels: 3, or 1 for grey levels.
        held_out_source: images of the same kind that are the held-out split.
        held_out: which images are held out without such a source.
        image: column of Parquet files that holds encoded images.
        label: column of Parquet files, `metadata.csv` or `.jsonl` that holds classes.
        renumber: number the integers that occur as classes from 0 on.
        white: brightest value of images of more than 8 bits; by default it is found in some.
        chunk: images per shard, including those held out.
        workers: processes; one per core by default.
        part: the share of the work to do: 3/16 is the third of sixteen. The shards do not depend
            on how they are shared out.
        max_failures: stop if a larger share of the images, and more than one, cannot be used.
    """

    size: ImageSize = 256
    channels: int = 3
    held_out_source: Path | None = None
    held_out: HeldOut = HeldOut()
    image: str = "image"
    label: str = "label"
    renumber: bool = False
    white: int | None = None
    chunk: int = 2048
    workers: int = dataclasses.field(default_factory=count_cores)
    part: str = "1/1"
    max_failures: float = 0.01

    def __post_init__(self) -> None:
        check_shape(self.size, self.channels)
        check_range(self, "chunk", "workers", "white", least=1)
        check_range(self, "max_failures", least=0, most=1)
        part_slice(self.part)


def part_slice(part: str) -> slice:
    """Return which items belong to part I/N: every N-th, from the I-th on."""
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"part must be I/N with I from 1 to N, like 3/16; got {part}")
    return slice(number - 1, None, count)


def prepare(source: Path, out: Path, config: PrepareConfig) -> list[Path]:
    """Write the images of a source as shards, and their index once all are there.

    Finished shards are not written again, so an interrupted job resumes. Images that cannot be used
    are listed in `skipped.jsonl` with the reason. The source is only read.

    Args:
        source: a folder of images, a zip, uncompressed tars, or Parquet files.
        out: folder of the shards; see `odelt_eqx.data.records`.

    Returns:
        The paths of `skipped.jsonl`, and of `index.json` unless other parts are unfinished.

    Raises:
        InputError: the source cannot be read or too many of its images cannot be used; `out`
            contains something else or cannot be written.
    """
    chunks, class_names = _make_chunks(source, out, config)
    items = [(chunk.images.names, chunk.images.labels, chunk.held_out) for chunk in chunks]
    plan = {"size": config.size, "channels": config.channels, "chunk": config.chunk}
    start_folder(out, {**plan, "images": fingerprint(class_names, items)})
    own = chunks[part_slice(config.part)]
    total = sum(len(chunk.images) for chunk in own)
    missing = [chunk for chunk in own if not chunk.outcome_path.is_file()]
    done = total - sum(len(chunk.images) for chunk in missing)
    failures = sum(len(outcome.skipped) for outcome in _load_outcomes(own))

    def check_failures() -> None:
        if failures > max(min(1, total - 1), config.max_failures * total):
            raise InputError(
                f"{failures} of {total} images cannot be used, more than max_failures "
                f"{config.max_failures:g}; {out / SKIPPED} says why"
            )

    try:
        check_failures()
        with Progress("prepare", total, done) as progress:
            for chunk, outcome in _write_chunks(missing, config.workers):
                failures += len(outcome.skipped)
                progress.show(skipped=failures)
                progress.advance(len(chunk.images))
                check_failures()
    finally:
        outcomes = _load_outcomes(chunks)
        skipped = [row for outcome in outcomes for row in outcome.skipped]
        rows = [json.dumps({"name": name, "reason": text}) + "\n" for name, text in skipped]
        with write_errors(out):
            write_text(out / SKIPPED, "".join(rows))
    if len(outcomes) < len(chunks):
        return [out / SKIPPED]
    shards, classes = {}, {}
    for split in SPLITS:
        labels = [outcome.labels[split] for outcome in outcomes]
        pairs = zip(chunks, labels, strict=True)
        shards[split] = {chunk.shard(split).name: len(own) for chunk, own in pairs if own}
        counts = np.bincount(np.concatenate(labels).astype(int), minlength=len(class_names))
        classes[split] = tuple(counts.tolist())
    by_hash = config.held_out_source is None and chunks[0].images.held_out is None
    held_out = config.held_out if by_hash else None
    layout = chunks[0].layout
    index = Index(layout, class_names, shards, classes, held_out, len(skipped))
    with write_errors(out):
        write_json(out / INDEX, to_dict(index))
    return [out / SKIPPED, out / INDEX]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Consecutive images of a source, which become a shard of each split."""

    number: int
    images: RawImages
    held_out: Bool[np.ndarray, " count"]
    white: int
    layout: Layout
    folder: Path

    @property
    def outcome_path(self) -> Path:
        """The file that exists once the chunk is finished."""
        return self.folder / CHUNKS / f"{self.number:05d}.json"

    def shard(self, split: Split) -> Path:
        """Return the file of a split's records; without records it does not exist."""
        return self.folder / f"{split}-{self.number:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The label of each record, by split, and the names of skipped images with the reason."""

    labels: dict[Split, list[int]]
    skipped: list[tuple[str, str]]


def _make_chunks(
    source: Path, out: Path, config: PrepareConfig
) -> tuple[list[_Chunk], tuple[str, ...]]:
    """Return all chunks and the class names."""
    layout = Layout("images", "uint8", (*height_width(config.size), config.channels))
    sources = [source] if config.held_out_source is None else [source, config.held_out_source]
    for path in sources:
        if out.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{out} lies in {path}, which is only read; choose another folder")
    found = [find_raw_images(p, config.image, config.label, config.renumber) for p in sources]
    class_names, white = found[0].class_names, config.white or find_white(found[0])
    if config.held_out_source is not None:
        found[0] = found[0].for_training()
    chunks: list[_Chunk] = []
    for images in found:
        relabelled = images.relabel(class_names)
        for first in range(0, len(images), config.chunk):
            part = relabelled.take(range(first, min(first + config.chunk, len(images))))
            held_out = np.full(len(part), images is not found[0])
            if config.held_out_source is None:
                held_out = part.held_out
                if held_out is None:
                    held_out = config.held_out.select(part.names, "held-out")
            chunks.append(_Chunk(len(chunks), part, held_out, white, layout, out))
    return chunks, class_names


def start_folder(out: Path, plan: dict[str, Any], ignored: Collection[str] = ()) -> None:
    """Write the plan of a job to its folder, or check that it is the one that is there.

    Subfolders whose names are `ignored` may be there before.

    Raises:
        InputError: the folder has another plan, or is not a folder of shards.
    """
    path, plan = out / PLAN, json.loads(json.dumps({"version": VERSION, **plan}))
    with write_errors(out):
        if path.is_file():
            previous = from_dict(read_json(path, "a plan of prepare"), dict, str(path))
            if different := [name for name in plan if previous.get(name) != plan[name]]:
                raise InputError(
                    f"{out} was begun with other {', '.join(different)}; choose another folder"
                )
        elif out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {*ignored}):
            raise InputError(f"{out} exists and is not a folder of shards; choose another")
        write_json(path, plan)


def _write_chunk(chunk: _Chunk) -> _Outcome:
    """Write the shards of a chunk, then its outcome; this runs in worker processes."""
    outcome = _Outcome({split: [] for split in SPLITS}, [])
    height, width, channels = chunk.layout.shape
    images = chunk.images
    with write_errors(chunk.folder, "the same command resumes"):
        with ExitStack() as stack:
            write = {s: stack.enter_context(write_shard(chunk.shard(s))) for s in SPLITS}
            for index, name in enumerate(images.names):
                try:
                    data = images.read(images.locations[index])
                    pixels = decode_image(data, (height, width), channels, chunk.white)
                except BadImageError as error:
                    outcome.skipped.append((name, str(error)))
                    continue
                except Exception as error:  # a damaged archive raises anything
                    outcome.skipped.append((name, f"{type(error).__name__}: {reason(error)}"))
                    continue
                split: Split = "held-out" if chunk.held_out[index] else "train"
                label, encoded = int(images.labels[index]), name.encode(errors="surrogateescape")
                write[split](chunk.layout.pack(label, pixels, encoded))
                outcome.labels[split].append(label)
        chunk.outcome_path.parent.mkdir(exist_ok=True)
        temporary = temporary_path(chunk.outcome_path)
        temporary.write_text(json.dumps(to_dict(outcome)))
        os.replace(temporary, chunk.outcome_path)
    return outcome


def _load_outcomes(chunks: Sequence[_Chunk]) -> list[_Outcome]:
    """Return the outcomes of the finished chunks."""
    paths = [chunk.outcome_path for chunk in chunks if chunk.outcome_path.is_file()]
    what = "the outcome of a chunk; remove it"
    return [from_dict(read_json(path, what), _Outcome, str(path)) for path in paths]


def _write_chunks(chunks: Sequence[_Chunk], workers: int) -> Iterator[tuple[_Chunk, _Outcome]]:
    """Write chunks in parallel; yield each with its outcome as it finishes."""
    if min(workers, len(chunks)) <= 1:
        yield from ((chunk, _write_chunk(chunk)) for chunk in chunks)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks of JAX's threads
    pool = ProcessPoolExecutor(min(workers, len(chunks)), spawn, initializer=follow_parent)
    try:
        futures = {pool.submit(_write_chunk, chunk): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker was killed, perhaps for lack of memory; the same command resumes, perhaps "
            "with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
