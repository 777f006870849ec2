"""The shards that `scripts/prepare.py` writes: a folder of records and an index of them.

`index.json` is an `Index`. Beside it lie ArrayRecord files, `train-00000.array_record` and
`held-out-00000.array_record` and so on; their records stand in groups of one, not compressed: at
256 x 256 they are read 40 times as fast as PNG and take a fifth more space. A record is

    label     4 bytes, a little-endian signed integer
    values    the array in C order, little-endian; shape and type are in the index, the same for all
    name      the rest: what the item was called in its source, UTF-8

The values of a picture are bytes (height, width, channels). Those of a latent are floats
(2, height, width, 2 x channels): for the picture and its mirror image, the mean and then the
log-variance of the autoencoder's normal distribution.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal

import cattrs
import numpy as np

from odelt_eqx.data.source import Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing

INDEX = "index.json"
VERSION = 1
Kind = Literal["pictures", "latents"]
LABEL = np.dtype("<i4")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is in every record.

    Args:
        kind: "pictures" or "latents".
        dtype: type of the values: "uint8", "float16" or "float32".
        shape: shape of the values.
    """

    kind: Kind
    dtype: Literal["uint8", "float16", "float32"]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that kind, type and shape belong together."""
        pictures = self.kind == "pictures" and self.dtype == "uint8" and len(self.shape) == 3
        latents = self.kind == "latents" and self.dtype != "uint8" and len(self.shape) == 4
        if latents:
            latents = self.shape[0] == 2 and self.shape[-1] % 2 == 0
        if not (pictures or latents) or min(self.shape) < 1:
            raise InputError(f"no records are {self.kind} of {self.dtype} {self.shape}")

    def pack(self, label: int, values: np.ndarray, name: str) -> bytes:
        """Return a record.

        Raises:
            ValueError: the values have another shape.
        """
        if values.shape != self.shape:
            raise ValueError(f"values have shape {values.shape}, not {self.shape}")
        little = np.ascontiguousarray(values, self._dtype)
        head = np.asarray(label, LABEL).tobytes()
        return head + little.tobytes() + name.encode(errors="surrogateescape")

    def unpack(self, record: bytes) -> tuple[int, np.ndarray]:
        """Return the label and the values in a record.

        Raises:
            InputError: the record is too short.
        """
        count = math.prod(self.shape)
        if len(record) < self._end:
            raise InputError("a record is shorter than its index says; prepare the shards again")
        values = np.frombuffer(record, self._dtype, count, LABEL.itemsize).reshape(self.shape)
        return int(np.frombuffer(record, LABEL, 1)[0]), values

    def name(self, record: bytes) -> str:
        """Return what an item was called in its source."""
        return record[self._end :].decode(errors="surrogateescape")

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def _end(self) -> int:
        return LABEL.itemsize + math.prod(self.shape) * self._dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Args:
        version: of this format.
        layout: what is in every record.
        class_names: by label.
        shards: for each split, the records in each of its files.
        classes: for each split, how many examples each class has.
        held_out: the rule by which examples were held out; None if the data said so.
        skipped: items of the source that could not be used; `skipped.jsonl` lists them.
    """

    version: int
    layout: Layout
    class_names: tuple[str, ...]
    shards: dict[Split, dict[str, int]]
    classes: dict[Split, tuple[int, ...]]
    held_out: HeldOut | None
    skipped: int


def save_index(index: Index, folder: Path) -> None:
    """Write `index.json`."""
    with replacing(folder / INDEX) as beside:
        beside.write_text(json.dumps(cattrs.unstructure(index), indent=2) + "\n")


def load_index(folder: Path) -> Index:
    """Read `index.json`; nothing but its own types can come out of it.

    Raises:
        InputError: it is not there, or is not one of this version.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} is no folder of shards: it has no {INDEX}; make one with scripts/prepare.py "
            "and give it by data:shards --data.folder"
        )
    try:
        document = json.loads(path.read_text())
        if document["version"] != VERSION:
            raise InputError(
                f"{path} is of version {document['version']}, this is {VERSION}; prepare it again"
            )
        return cattrs.Converter(forbid_extra_keys=True).structure(document, Index)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    except cattrs.BaseValidationError as error:
        problem = "; ".join(cattrs.transform_error(error))
    raise InputError(f"{path} is no index of shards: {problem}")
