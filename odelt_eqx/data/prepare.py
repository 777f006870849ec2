"""Raw images, and whatever else is read item by item, to shards."""

import dataclasses
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool

from odelt_eqx.data.decode import BadImageError, check_shape, decode_image
from odelt_eqx.data.items import RawItems, find_white
from odelt_eqx.data.pipeline import follow_parent
from odelt_eqx.data.raw import find_raw_images
from odelt_eqx.data.records import INDEX, VERSION, Index, Layout, write_shard
from odelt_eqx.data.source import Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError, check_range, reason
from odelt_eqx.files import (
    atomic_write,
    fingerprint,
    read_json,
    temporary_path,
    write_errors,
    write_json,
)
from odelt_eqx.images import ImageSize, height_width
from odelt_eqx.progress import Progress
from odelt_eqx.serialize import from_dict, to_dict

PLAN, SKIPPED = "plan.json", "skipped.jsonl"
CHUNKS = ".chunks"
"""Folder, among the shards, of the outcome of each finished chunk."""
ADDED = ("white", "image_column")
"""What the plans of earlier versions lack: those jobs may be resumed all the same."""
SPLITS: tuple[Split, ...] = ("train", "held-out")
Found = TypeVar("Found")


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

    Finished shards are not written again unless they are removed, so an interrupted job resumes.
    Images that cannot be used are listed in `skipped.jsonl` with the reason. The source is only
    read.

    Args:
        source: a folder of images, a zip, uncompressed tars, or Parquet files.
        out: folder of the shards; see `odelt_eqx.data.records`.

    Returns:
        The paths of `skipped.jsonl`, and of `index.json` unless other parts are unfinished.

    Raises:
        InputError: the source cannot be read or too many of its images cannot be used; `out`
            contains something else or cannot be written.
    """
    find = partial(
        find_raw_images, image=config.image, label=config.label, renumber=config.renumber
    )
    found = find_items(source, out, config, find)
    white = config.white or find_white(found[0])
    layout = Layout("images", "uint8", (*height_width(config.size), config.channels))
    decode = partial(decode_image, size=config.size, channels=config.channels, white=white)
    plan = {"size": config.size, "channels": config.channels}
    plan |= {"white": white, "image_column": config.image}
    return write_items(found, layout, decode, out, config, plan)


def find_items(
    source: Path, out: Path, config: PrepareConfig, find: Callable[[Path], Found]
) -> list[Found]:
    """Return what is found in a source and, if there is one, in the held-out source.

    Raises:
        InputError: `find` raises it, or the shards would lie in a source.
    """
    sources = [source] if config.held_out_source is None else [source, config.held_out_source]
    for path in sources:
        if out.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{out} lies in {path}, which is only read; choose another folder")
    return [find(path) for path in sources]


def write_items(
    found: Sequence[RawItems],
    layout: Layout,
    decode: Callable[[Any], np.ndarray],
    out: Path,
    config: PrepareConfig,
    plan: dict[str, Any],
) -> list[Path]:
    """Write items as shards, in parallel, and their index once all are there.

    Args:
        found: the items of the source, then those of the held-out source, if there is one.
        layout: of the records.
        decode: returns the values of a record from what `RawItems.read` returns; can be pickled.
        out: folder of the shards.
        config: how to write them; size, channels and the like are the business of `decode`.
        plan: what else the content of the shards depends on.

    Returns:
        See `prepare`.

    Raises:
        InputError: too many items cannot be used, or `out` contains something else or cannot be
            written.
    """
    chunks, class_names = _make_chunks(found, layout, decode, out, config)
    items = [(chunk.items.names, chunk.items.labels, chunk.held_out) for chunk in chunks]
    plan = {**plan, "chunk": config.chunk, layout.kind: fingerprint(class_names, items)}
    start_folder(out, plan)
    own = chunks[part_slice(config.part)]
    total = sum(len(chunk.items) for chunk in own)
    finished = _load_outcomes(own)
    missing = [chunk for chunk in own if chunk.number not in finished]
    done = total - sum(len(chunk.items) for chunk in missing)
    failures = sum(len(outcome.skipped) for outcome in finished.values())

    def check_failures() -> None:
        if failures > max(min(1, total - 1), config.max_failures * total):
            raise InputError(
                f"{failures} of {total} {layout.kind} cannot be used, more than max_failures "
                f"{config.max_failures:g}; {out / SKIPPED} says why"
            )

    try:
        check_failures()
        with Progress("prepare", total, done) as progress:
            for chunk, outcome in _write_chunks(missing, config.workers):
                failures += len(outcome.skipped)
                progress.show(skipped=failures)
                progress.advance(len(chunk.items))
                check_failures()
    finally:
        # A part that ends later waits here, and so finds what this one has finished.
        with write_errors(out), atomic_write(out / SKIPPED, wait=True) as temporary:
            outcomes = list(_load_outcomes(chunks).values())
            skipped = [row for outcome in outcomes for row in outcome.skipped]
            rows = [json.dumps({"name": name, "reason": text}) + "\n" for name, text in skipped]
            temporary.write_text("".join(rows), "utf-8")
    if len(outcomes) < len(chunks):
        return [out / SKIPPED]
    shards, classes = {}, {}
    for split in SPLITS:
        labels = [outcome.labels[split] for outcome in outcomes]
        pairs = zip(chunks, labels, strict=True)
        shards[split] = {chunk.shard(split).name: len(own) for chunk, own in pairs if own}
        counts = np.bincount(np.concatenate(labels).astype(int), minlength=len(class_names))
        classes[split] = tuple(counts.tolist())
    by_hash = config.held_out_source is None and chunks[0].items.held_out is None
    held_out = config.held_out if by_hash else None
    index = Index(layout, class_names, shards, classes, held_out, len(skipped))
    with write_errors(out):
        write_json(out / INDEX, to_dict(index))
    return [out / SKIPPED, out / INDEX]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Consecutive items of a source, which become a shard of each split."""

    number: int
    items: RawItems
    held_out: Bool[np.ndarray, " count"]
    decode: Callable[[Any], np.ndarray]
    layout: Layout
    folder: Path

    @property
    def outcome_path(self) -> Path:
        """The file that is written once the shards are."""
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
    found: Sequence[RawItems],
    layout: Layout,
    decode: Callable[[Any], np.ndarray],
    out: Path,
    config: PrepareConfig,
) -> tuple[list[_Chunk], tuple[str, ...]]:
    """Return all chunks and the class names."""
    class_names = found[0].class_names
    if config.held_out_source is not None:
        found = [found[0].for_training(), *found[1:]]
    chunks: list[_Chunk] = []
    for items in found:
        relabelled = items.relabel(class_names)
        for first in range(0, len(items), config.chunk):
            part = relabelled.take(range(first, min(first + config.chunk, len(items))))
            held_out = np.full(len(part), items is not found[0])
            if config.held_out_source is None:
                held_out = part.held_out
                if held_out is None:
                    held_out = config.held_out.select(part.names, "held-out")
            chunks.append(_Chunk(len(chunks), part, held_out, decode, layout, out))
    return chunks, class_names


def start_folder(out: Path, plan: dict[str, Any], ignored: Collection[str] = ()) -> None:
    """Write the plan of a job to its folder, or check that it is the one that is there.

    Subfolders whose names are `ignored` may be there before, and a plan that another process is
    writing.

    Raises:
        InputError: the folder has another plan, or is not a folder of shards.
    """
    path, plan = out / PLAN, json.loads(json.dumps({"version": VERSION, **plan}))
    with write_errors(out):
        names = {each.name for each in out.iterdir()} if out.is_dir() else set()
        if path.is_file():
            previous = {name: plan.get(name) for name in ADDED}
            previous |= from_dict(read_json(path, "a plan of prepare"), dict, str(path))
            if different := [name for name in plan if previous.get(name) != plan[name]]:
                raise InputError(
                    f"{out} was begun with other {', '.join(different)}; choose another folder"
                )
        elif (out.exists() and not out.is_dir()) or names - {*ignored, temporary_path(path).name}:
            raise InputError(f"{out} exists and is not a folder of shards; choose another")
        write_json(path, plan)


def _write_chunk(chunk: _Chunk) -> _Outcome:
    """Write the shards of a chunk, then its outcome; this runs in worker processes."""
    outcome = _Outcome({split: [] for split in SPLITS}, [])
    items = chunk.items
    with write_errors(chunk.folder, "the same command resumes"):
        with ExitStack() as stack:
            write = {s: stack.enter_context(write_shard(chunk.shard(s))) for s in SPLITS}
            for index, name in enumerate(items.names):
                try:
                    values = chunk.decode(items.read(items.locations[index]))
                except (BadImageError, InputError) as error:
                    outcome.skipped.append((name, str(error)))
                    continue
                except Exception as error:  # a damaged archive raises anything
                    outcome.skipped.append((name, f"{type(error).__name__}: {reason(error)}"))
                    continue
                split: Split = "held-out" if chunk.held_out[index] else "train"
                label, encoded = int(items.labels[index]), name.encode(errors="surrogateescape")
                write[split](chunk.layout.pack(label, values, encoded))
                outcome.labels[split].append(label)
        chunk.outcome_path.parent.mkdir(exist_ok=True)
        temporary = temporary_path(chunk.outcome_path)
        temporary.write_text(json.dumps(to_dict(outcome)))
        os.replace(temporary, chunk.outcome_path)
    return outcome


def _load_outcomes(chunks: Sequence[_Chunk]) -> dict[int, _Outcome]:
    """Return the outcomes, by number, of the finished chunks: those that lack no shard."""
    what, outcomes = "the outcome of a chunk; remove it", {}
    for chunk in chunks:
        if chunk.outcome_path.is_file():
            document = read_json(chunk.outcome_path, what)
            outcome = from_dict(document, _Outcome, str(chunk.outcome_path))
            if all(chunk.shard(split).is_file() for split in SPLITS if outcome.labels[split]):
                outcomes[chunk.number] = outcome
    return outcomes


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
