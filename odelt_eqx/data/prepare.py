"""Pictures as they are found, to shards that training reads."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np

from odelt_eqx.data.chunks import CHUNKS, SPLITS, Chunk, Outcome, outcome_of, write_chunk
from odelt_eqx.data.folder import check_shape
from odelt_eqx.data.originals import Originals, find_originals
from odelt_eqx.data.records import INDEX, VERSION, Index, Layout, save_index
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.data.workers import follow_parent
from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.progress import Progress

PLAN, SKIPPED = "plan.json", "skipped.jsonl"


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How pictures become shards.

    Args:
        size: height and width of the squares; see `odelt_eqx.data.pictures.decode`.
        channels: 3, or 1 for grey levels.
        held_out_source: pictures of the same kind that are held out.
        held_out: which pictures are held out where there is no such source.
        image: column of Parquet files that holds encoded pictures.
        label: column of Parquet files that holds classes.
        chunk: pictures of a file, those held out included.
        workers: processes; one for each core by default.
        part: which share of the work is done here: 3/16 is the third of sixteen. The shards are the
            same however they are shared out.
        max_failures: a larger share of pictures that cannot be used stops the job.
    """

    size: int = 256
    channels: int = 3
    held_out_source: Path | None = None
    held_out: HeldOut = HeldOut()
    image: str = "image"
    label: str = "label"
    chunk: int = 2048
    workers: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))
    part: str = "1/1"
    max_failures: float = 0.01

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_shape(self.size, self.channels)
        for name in ("chunk", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.max_failures <= 1:
            raise InputError(f"max_failures must lie in [0, 1]; got {self.max_failures}")
        share_of(self.part)


def share_of(part: str) -> tuple[int, int]:
    """Return which part, from 0, of how many."""
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    which, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= which <= of:
        raise InputError(f"part must be I/N with I from 1 to N, like 3/16; got {part}")
    return which - 1, of


def prepare(source: Path, out: Path, config: PrepareConfig) -> list[Path]:
    """Write the pictures of a source as shards, and an index of them once all are there.

    Finished files are kept, so an interrupted job goes on where it was. The source is only read.
    Pictures that cannot be used are listed in `skipped.jsonl`, each with the reason.

    Args:
        source: a folder of pictures, a zip, an uncompressed tar, or Parquet files.
        out: folder of the shards; see `odelt_eqx.data.records`.
        config: how.

    Returns:
        `skipped.jsonl`, and `index.json` unless other parts of the work are yet to be done.

    Raises:
        InputError: the source cannot be read or has too many pictures that cannot be used; `out`
            holds something else or cannot be written.
    """
    chunks, class_names, layout = _chunks(source, out, config)
    _begin(out, chunks, class_names, config)
    which, of = share_of(config.part)
    own = chunks[which::of]
    total = sum(len(chunk.originals) for chunk in own)
    outcomes = {chunk.number: known for chunk in own if (known := outcome_of(chunk))}
    missing = [chunk for chunk in own if chunk.number not in outcomes]
    failures = sum(len(outcome.skipped) for outcome in outcomes.values())
    done = sum(outcome.read for outcome in outcomes.values())
    try:
        with Progress("prepare", total, done) as progress:
            for outcome in itertools.chain([None], _outcomes(missing, config.workers)):
                if outcome:
                    failures += len(outcome.skipped)
                    progress.show(skipped=failures)
                    progress.advance(outcome.read)
                if failures > config.max_failures * total:
                    raise InputError(
                        f"{failures} of {total} pictures cannot be used, more than max_failures "
                        f"{config.max_failures:g}; {out / SKIPPED} says why"
                    )
    finally:
        known = [outcome_of(chunk) for chunk in chunks]
        _write_skipped(out, [outcome for outcome in known if outcome])
    finished = [outcome for outcome in known if outcome]
    if len(finished) < len(chunks):
        return [out / SKIPPED]
    held_out = None if config.held_out_source else config.held_out
    _write_index(out, chunks, finished, class_names, layout, held_out)
    return [out / SKIPPED, out / INDEX]


def _chunks(
    source: Path, out: Path, config: PrepareConfig
) -> tuple[list[Chunk], tuple[str, ...], Layout]:
    """Return all chunks, the class names, and what records there will be."""
    layout = Layout("pictures", "uint8", (config.size, config.size, config.channels))
    sources = [source] if config.held_out_source is None else [source, config.held_out_source]
    for path in sources:
        if out.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{out} lies in {path}, where nothing is written; choose another")
    found = [find_originals(path, config.image, config.label) for path in sources]
    names = found[0].class_names
    chunks: list[Chunk] = []
    for originals in found:
        own = _with_classes(originals, names)
        for first in range(0, len(own), config.chunk):
            part = own.between(first, first + config.chunk)
            held = np.full(len(part), originals is not found[0])
            if config.held_out_source is None:
                held = config.held_out.of(part.names, "held-out")
            chunks.append(Chunk(len(chunks), part, held, layout, out))
    return chunks, names, layout


def _with_classes(originals: Originals, names: tuple[str, ...]) -> Originals:
    """Return pictures labelled by other class names, of which theirs are some."""
    if unknown := sorted(set(originals.class_names) - set(names)):
        raise InputError(f"{originals.path} has a class that the training data lack: {unknown[0]}")
    labels = np.asarray([names.index(n) for n in originals.class_names], np.int32)
    return dataclasses.replace(originals, labels=labels[originals.labels])


def _begin(
    out: Path, chunks: Sequence[Chunk], class_names: tuple[str, ...], config: PrepareConfig
) -> None:
    """Make the folder, or check that it is this work that was begun in it."""
    fingerprint = blake2b(repr((class_names, len(chunks))).encode(), digest_size=16)
    for chunk in chunks:
        for name, label in zip(chunk.originals.names, chunk.originals.labels, strict=True):
            fingerprint.update(f"{name}\0{label}\0".encode(errors="surrogateescape"))
        fingerprint.update(chunk.held_out.tobytes())
    shape = {name: getattr(config, name) for name in ("size", "channels", "chunk")}
    plan = {"version": VERSION, **shape, "pictures": fingerprint.hexdigest()}
    path = out / PLAN
    with writing(out):
        if path.is_file():
            begun = _begun(path)
            different = [name for name in plan if begun.get(name) != plan[name]]
            if different:
                raise InputError(
                    f"{out} was begun with other {', '.join(different)}; choose another folder"
                )
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists and is no folder of shards; choose another")
        (out / CHUNKS).mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_text(json.dumps(plan, indent=2) + "\n")


def _begun(path: Path) -> dict:
    """Return the plan of what was begun; of a damaged one, nothing fits."""
    try:
        begun = json.loads(path.read_text())
    except ValueError:
        return {}
    return begun if isinstance(begun, dict) else {}


def _outcomes(chunks: Sequence[Chunk], workers: int) -> Iterator[Outcome]:
    """Yield what becomes of chunks, in whatever order they are finished."""
    if min(workers, len(chunks)) <= 1:
        yield from map(write_chunk, chunks)
        return
    spawn = multiprocessing.get_context("spawn")  # a copy of this process would hold its threads
    pool = ProcessPoolExecutor(min(workers, len(chunks)), spawn, initializer=follow_parent)
    try:
        for future in as_completed([pool.submit(write_chunk, chunk) for chunk in chunks]):
            yield future.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker was killed, perhaps for want of memory; the same command goes on from "
            "there, perhaps with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _write_skipped(out: Path, outcomes: Iterable[Outcome]) -> None:
    with writing(out), replacing(out / SKIPPED) as beside, beside.open("w") as file:
        for name, reason in itertools.chain.from_iterable(o.skipped for o in outcomes):
            print(json.dumps({"name": name, "reason": reason}), file=file)


def _write_index(
    out: Path,
    chunks: Sequence[Chunk],
    outcomes: Sequence[Outcome],
    class_names: tuple[str, ...],
    layout: Layout,
    held_out: HeldOut | None,
) -> None:
    shards, classes = {}, {}
    for split in SPLITS:
        counts = [sum(outcome.classes[split].values()) for outcome in outcomes]
        pairs = zip(chunks, counts, strict=True)
        shards[split] = {chunk.shard(split).name: count for chunk, count in pairs if count}
        total = sum((Counter(outcome.classes[split]) for outcome in outcomes), Counter())
        classes[split] = tuple(total[label] for label in range(len(class_names)))
    skipped = sum(len(outcome.skipped) for outcome in outcomes)
    index = Index(VERSION, layout, class_names, shards, classes, held_out, skipped)
    with writing(out):
        save_index(index, out)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a file system's refusal into one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from None
