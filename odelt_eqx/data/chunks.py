"""One part of what `prepare` does: some pictures to two shards, by whatever process."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import cattrs
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Bool

from odelt_eqx.data.originals import Originals
from odelt_eqx.data.pictures import BadPictureError, decode
from odelt_eqx.data.records import Layout
from odelt_eqx.data.source import Split
from odelt_eqx.errors import InputError
from odelt_eqx.files import beside

CHUNKS = ".chunks"
"""Folder, among the shards, of what is known of each finished chunk."""
OPTIONS = "group_size:1,uncompressed"
SPLITS: tuple[Split, ...] = ("train", "held-out")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Neighbouring pictures of a source, which become a shard of each split.

    Args:
        number: which of the chunks.
        originals: the pictures.
        held_out: which of them are held out.
        layout: what their records are.
        folder: where the shards go.
    """

    number: int
    originals: Originals
    held_out: Bool[np.ndarray, " count"]
    layout: Layout
    folder: Path

    @property
    def done(self) -> Path:
        """The file that is there when the chunk is finished."""
        return self.folder / CHUNKS / f"{self.number:05d}.json"

    def shard(self, split: Split) -> Path:
        """The file of a split's records; it is not there if there are none."""
        return self.folder / f"{split}-{self.number:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a chunk.

    Args:
        read: pictures that were looked at.
        classes: for each split, how many records there are of each label.
        skipped: name of each picture that cannot be used, and the reason.
    """

    read: int
    classes: dict[Split, dict[int, int]]
    skipped: tuple[tuple[str, str], ...]


def write_chunk(chunk: Chunk) -> Outcome:
    """Write the shards of a chunk, whole or not at all, and what became of it.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        with ExitStack() as stack:
            files = {split: stack.enter_context(ShardFile(chunk.shard(split))) for split in SPLITS}
            skipped = []
            classes: dict[Split, Counter[int]] = {split: Counter() for split in SPLITS}
            for place, outcome in enumerate(_pixels(chunk)):
                name, label = chunk.originals.names[place], int(chunk.originals.labels[place])
                if isinstance(outcome, str):
                    skipped.append((name, outcome))
                    continue
                split: Split = "held-out" if chunk.held_out[place] else "train"
                files[split].write(chunk.layout.pack(label, outcome, name))
                classes[split][label] += 1
            for file in files.values():
                file.keep()
        counts: dict[Split, dict[int, int]] = {split: dict(classes[split]) for split in SPLITS}
        outcome = Outcome(len(chunk.originals), counts, tuple(skipped))
        partial = beside(chunk.done)
        partial.write_text(json.dumps(cattrs.unstructure(outcome)))
        os.replace(partial, chunk.done)
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{chunk.folder} cannot be written: {problem}; the same command goes on from there"
        ) from None
    return outcome


def outcome_of(chunk: Chunk) -> Outcome | None:
    """Return what became of a chunk; None if it is not finished."""
    try:
        return cattrs.structure(json.loads(chunk.done.read_text()), Outcome)
    except FileNotFoundError:
        return None
    except (ValueError, cattrs.BaseValidationError):
        raise InputError(f"{chunk.done} is damaged; remove it and run this again") from None


def _pixels(chunk: Chunk) -> Iterator[np.ndarray | str]:
    """Yield the pixels of each picture, or why it cannot be used."""
    size, _, channels = chunk.layout.shape
    for place in chunk.originals.places:
        try:
            yield decode(chunk.originals.read(place), size, channels)
        except BadPictureError as error:
            yield str(error)
        except Exception as error:  # a damaged archive raises what it likes
            yield " ".join(f"{type(error).__name__}: {error}".split())[:200]


class ShardFile(AbstractContextManager):
    """A file of records, written beside its place; without records there is none."""

    def __init__(self, path: Path):
        """Write what is to become `path`."""
        self._path, self._partial = path, beside(path)
        self._writer: ArrayRecordWriter | None = None

    def write(self, record: bytes) -> None:
        """Add a record."""
        writer = self._writer or ArrayRecordWriter(str(self._partial), OPTIONS)
        self._writer = writer
        writer.write(record)

    def keep(self) -> None:
        """Put the file in its place; without this nothing is left of it."""
        if self._writer is None:
            self._path.unlink(missing_ok=True)
            return
        self._writer.close()
        self._writer = None
        os.replace(self._partial, self._path)

    def __exit__(self, *_: object) -> None:
        """Remove what was not kept."""
        if self._writer is not None:
            self._writer.close()
        self._partial.unlink(missing_ok=True)
