"""Shards of pictures or latents as sources."""

import dataclasses
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter as ArrayRecordWriter

from odelt_eqx.data.records import Index, Layout, load_index
from odelt_eqx.data.source import Example, Source, Split, as_float
from odelt_eqx.data.splits import check_not_empty
from odelt_eqx.errors import InputError


class Shard(NamedTuple):
    """A file of records, as ArrayRecord takes it: all of them.

    Attributes:
        filename: where it is.
        skip: records passed over.
        take: records read.
        examples_in_shard: records in it.
    """

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@dataclasses.dataclass(frozen=True)
class Shards:
    """A folder of shards that `scripts/prepare.py` made, of pictures or of latents.

    Args:
        folder: the folder.
    """

    folder: Path

    def __str__(self) -> str:
        """Return what messages call it."""
        return str(self.folder)

    def open(self, split: Split) -> "ShardSource | LatentSource":
        """Return a split.

        Raises:
            InputError: the folder has no index, or a file that it names is missing.
        """
        index = load_index(self.folder)
        files = index.shards.get(split, {})
        check_not_empty(sum(files.values()), split, self)
        kind = LatentSource if index.layout.kind == "latents" else ShardSource
        return kind(Records(self.folder, files), index.layout, index)


class Records:
    """The records of ArrayRecord files, one file after the other."""

    def __init__(self, folder: Path, files: dict[str, int]):
        """Read files in a folder.

        Args:
            folder: where they are.
            files: their names and how many records each has.

        Raises:
            InputError: one is missing.
        """
        shards = []
        for name, count in sorted(files.items()):
            if not (path := folder / name).is_file():
                raise InputError(f"{path} is missing; copy or make it again")
            shards.append(Shard(str(path), 0, count, count))
        self._folder = folder
        self._records = ArrayRecordDataSource(shards)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> bytes:
        """Return record `index`.

        Raises:
            InputError: its file is damaged.
        """
        try:
            return self._records[index]
        except (RuntimeError, ValueError) as error:
            problem = " ".join(str(error).split())[:200]
            raise InputError(
                f"record {index} in {self._folder} cannot be read: {problem}"
            ) from None


class ShardSource(Source):
    """Pictures in shards."""

    levels = 256

    def __init__(self, records: Records, layout: Layout, index: Index):
        """Read `records`, which are as `layout` and `index` say."""
        self._records, self._layout = records, layout
        self.image_shape, self.class_names = layout.shape, index.class_names

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`."""
        label, values = _read(self._records, self._layout, index)
        return {"image": as_float(values), "label": label}


class LatentSource(Source):
    """Latents in shards: each time one is seen it is drawn from its normal distribution."""

    random = True

    def __init__(self, records: Records, layout: Layout, index: Index):
        """Read `records`, which are as `layout` and `index` say."""
        self._records, self._layout = records, layout
        *size, moments = layout.shape[1:]
        self.image_shape, self.class_names = (*size, moments // 2), index.class_names

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return the mean of latent `index`, the picture as it is."""
        label, values = _read(self._records, self._layout, index)
        return {"image": np.split(values[0].astype(np.float32), 2, axis=-1)[0], "label": label}

    def draw(self, index: SupportsIndex, rng: np.random.Generator, flip: bool) -> Example:
        """Return a draw of latent `index`, half of the times of its mirror image if `flip`."""
        label, values = _read(self._records, self._layout, index)
        mirror = int(flip and rng.random() < 0.5)
        mean, log_variance = np.split(values[mirror].astype(np.float32), 2, axis=-1)
        noise = rng.standard_normal(mean.shape, np.float32)
        return {"image": mean + np.exp(log_variance / 2) * noise, "label": label}


def _read(records: Records, layout: Layout, index: SupportsIndex) -> tuple[np.ndarray, np.ndarray]:
    label, values = layout.unpack(records[index])
    return np.asarray(label, np.int32), values
