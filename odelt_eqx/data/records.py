"""The format of shards, which `odelt prepare` writes: a folder of records and their index.

`index.json` is an `Index`. Beside it lie ArrayRecord files, `train-00000.array_record` and
`held-out-00000.array_record` and so on, with records in groups of one, not compressed: at 256 x 256
pixels they are read 40 times as fast as PNG and take a fifth more space. A record is

    label     4 bytes, a little-endian signed integer
    values    the array in C order, little-endian; the index has its shape and type
    name      the rest: the name of the item in its source, UTF-8

The values of an image are bytes (height, width, channels). Those of a latent are floats
(2, height, width, 2 x channels): for the image and its mirror image, the mean and then the
log-variance of the autoencoder's normal distribution. The first axis is 1 where nobody encoded the
mirror image, which is not the mirror image of the latent.
"""

import dataclasses
import math
import os
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np

from odelt_eqx.data.source import Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.entry import typed
from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import claim, is_file_name, member_path, read_json, temporary_path
from odelt_eqx.serialize import from_dict

INDEX = "index.json"
VERSION = 2
OPTIONS = "group_size:1,uncompressed"
LABEL = np.dtype("<i4")
Shard = namedtuple("Shard", "filename skip take examples_in_shard")
"""Some records of a file, as ArrayRecord describes them."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The content of every record.

    Args:
        kind: "images" or "latents".
        dtype: type of the values.
        shape: shape of the values.
    """

    kind: Literal["images", "latents"]
    dtype: Literal["uint8", "float16", "float32"]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind == "images":
            fits = self.dtype == "uint8" and len(self.shape) == 3
        else:
            fits = self.dtype != "uint8" and len(self.shape) == 4
            fits = fits and self.shape[0] in (1, 2) and self.shape[3] % 2 == 0
        if not fits or min(self.shape) < 1:
            raise InputError(f"no records are {self.kind} of {self.dtype} {self.shape}")

    def pack(self, label: int, values: np.ndarray, name: bytes) -> bytes:
        """Return a record of values of this shape."""
        if values.shape != self.shape:
            raise ValueError(f"values have shape {values.shape}, not {self.shape}")
        data = np.ascontiguousarray(values, self._dtype).tobytes()
        return np.asarray(label, LABEL).tobytes() + data + name

    def unpack(self, record: bytes) -> tuple[int, np.ndarray, bytes]:
        """Return the label, the values and the encoded name in a record.

        Raises:
            InputError: the record is too short.
        """
        count = math.prod(self.shape)
        end = LABEL.itemsize + count * self._dtype.itemsize
        if len(record) < end:
            raise InputError("a record is shorter than its index says; prepare the shards again")
        label = int(np.frombuffer(record, LABEL, 1)[0])
        values = np.frombuffer(record, self._dtype, count, LABEL.itemsize)
        return label, values.reshape(self.shape), record[end:]

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of a folder of shards.

    Args:
        layout: content of every record.
        class_names: by label.
        shards: for each split, the number of records in each file.
        classes: for each split, the number of examples of each class.
        held_out: the rule by which examples are held out; None if the source defines the split.
        skipped: number of items that could not be used; `skipped.jsonl` lists them.
        version: version of the format.

    Raises:
        InputError: the name of a file is a path.
    """

    layout: Layout
    class_names: tuple[str, ...]
    shards: dict[Split, dict[str, int]]
    classes: dict[Split, tuple[int, ...]]
    held_out: HeldOut | None
    skipped: int
    version: int = VERSION

    def __post_init__(self) -> None:
        wrong = [name for files in self.shards.values() for name in files if not is_file_name(name)]
        if wrong:
            raise InputError(f"{wrong[0]!r} is not the name of a shard")


def load_index(folder: Path) -> Index:
    """Read `index.json`.

    Raises:
        InputError: it is missing or damaged, or of another version of the format.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} is not a folder of shards: it has no {INDEX}; make one with "
            f"{typed('prepare')} and give it by data:shards --data.folder"
        )
    document = read_json(path, "an index of shards")
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise InputError(
            f"{path} has version {version} of the format, not {VERSION}; prepare the shards again"
        )
    return from_dict(document, Index, str(path))


def _array_record() -> tuple[Any, Any]:
    """Return the reader and the writer of ArrayRecord files; an InputError if there are none."""
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError:
        raise InputError(
            "shards and TensorFlow Datasets need array_record, which is not installed: pip install "
            "array_record, where there is a wheel (Linux, macOS on ARM); data:folder needs none"
        ) from None
    return ArrayRecordDataSource, ArrayRecordWriter


class Records:
    """The records of several shards, one after the other.

    Args:
        folder: the folder of the shards.
        files: number of records in each file, by name.

    Raises:
        InputError: a file is missing, outside of the folder or too short for its records, or
            array_record is missing.
    """

    def __init__(self, folder: Path, files: dict[str, int]):
        for name, count in files.items():
            path = member_path(folder, name)
            if not path.is_file():
                raise InputError(f"{path} is missing; copy or make it again")
            if not 0 < count <= path.stat().st_size:  # a record has a byte at least
                raise InputError(f"{path} cannot hold {count:,} records, as its index says")
        shards = [Shard(str(folder / name), 0, n, n) for name, n in sorted(files.items())]
        self._folder = folder
        open_records, _ = _array_record()
        self._records: Any = open_records(shards) if shards else ()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> bytes:
        try:
            return self._records[index]
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"record {index} in {self._folder} cannot be read: {reason(error)}"
            ) from None


@contextmanager
def write_shard(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that adds a record to a shard; on success the file appears, if it has any.

    This runs in worker processes, too, which must not initialise JAX: hence no `atomic_write`.

    Raises:
        InputError: the file cannot be written, another process writes it now, or array_record is
            missing.
    """
    temporary, count = temporary_path(path), 0
    _, open_writer = _array_record()
    with claim(temporary):
        writer = open_writer(str(temporary), OPTIONS)

        def write(record: bytes) -> None:
            nonlocal count
            writer.write(record)
            count += 1

        try:
            yield write
            writer.close()
            if count:
                os.replace(temporary, path)
            else:
                temporary.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        except BaseException as error:  # after success, another process may have made it again
            temporary.unlink(missing_ok=True)
            if not isinstance(error, RuntimeError):  # all that ArrayRecord raises
                raise
            raise InputError(
                f"{path} was not written: {reason(error)}; the same command resumes"
            ) from None
