"""Shards of images or latents as sources."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from odelt_eqx.data.records import Layout, Records, load_index
from odelt_eqx.data.source import DataSet, Example, ImageSource, Source, Split
from odelt_eqx.errors import InputError
from odelt_eqx.serialize import set_declared


@dataclasses.dataclass(frozen=True)
class Shards(DataSet):
    """A folder of shards of images or latents, written by `odelt prepare`.

    Args:
        folder: the folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        set_declared(self)

    def _open(self, split: Split) -> Source:
        index = load_index(self.folder)
        layout, records = index.layout, Records(self.folder, index.shards.get(split, {}))
        identity = *index.shards.get(split, {}).items(), index.classes.get(split)
        if layout.kind == "latents":
            return LatentSource(records, layout, index.class_names, identity)
        read = partial(_read, records, layout, len(index.class_names))
        return ImageSource(read, len(records), layout.shape, index.class_names, identity)


def _read(
    records: Records, layout: Layout, classes: int, index: SupportsIndex
) -> tuple[np.ndarray, int]:
    """Return the values and the label of a record."""
    label, values, _ = layout.unpack(records[index])
    if not 0 <= label < classes:
        raise InputError(f"record {index} has the label {label}, which is none of {classes}")
    return values, label


class LatentSource(Source):
    """Latents in shards; `draw` samples their normal distributions."""

    random = True

    def __init__(
        self, records: Records, layout: Layout, class_names: tuple[str, ...], identity: Any = None
    ):
        _, height, width, moments = layout.shape
        self._read = partial(_read, records, layout, len(class_names))
        self._count, self.identity = len(records), identity
        self.shape, self.class_names = (height, width, moments // 2), class_names

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return the mean of latent `index`, not mirrored."""
        values, label = self._read(index)
        mean, _ = np.split(values[0].astype(np.float32), 2, axis=-1)
        return {"x": mean, "condition": np.asarray(label, np.int32)}

    def draw(self, index: SupportsIndex, rng: np.random.Generator, flip: bool) -> Example:
        """Return a sample of latent `index`; see `Source.draw`.

        It is never mirrored if the shards lack the latents of mirror images.
        """
        values, label = self._read(index)
        mirrored = int(flip and len(values) == 2 and rng.random() < 0.5)
        mean, log_variance = np.split(values[mirrored].astype(np.float32), 2, axis=-1)
        noise = rng.standard_normal(mean.shape, np.float32)
        x = mean + np.exp(log_variance / 2) * noise
        return {"x": x, "condition": np.asarray(label, np.int32)}
