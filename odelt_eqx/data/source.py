"""The interface of a data set: examples that are read by index, and helpers that read them."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypedDict

import numpy as np
from jaxtyping import Float, Int, UInt8

from odelt_eqx.errors import InputError
from odelt_eqx.files import fingerprint

Split = Literal["train", "held-out"]
Indices = Sequence[int] | Int[np.ndarray, " count"]


class Example(TypedDict):
    """One example, float32 (images in [-1, 1]), and its class, int32."""

    x: Float[np.ndarray, "*shape"]
    condition: Int[np.ndarray, ""]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a run remembers of the examples that it began with.

    Args:
        class_names: by label.
        count: number of examples.
        fingerprint: identifies their names and labels, in order.
    """

    class_names: tuple[str, ...]
    count: int
    fingerprint: str


class Source(abc.ABC):
    """One split of a data set, as grain reads it; safe to read from any thread or process.

    Attributes:
        shape: shape of one example; (height, width, channels) of an image.
        class_names: name of each class, by label.
        levels: number of grey levels of a pixel, 256 for 8 bits; None for continuous values.
        random: whether `draw` differs from `__getitem__` even without mirror images.
        identity: arrays, numbers and strings that other examples, or others in another order, would
            not have: their names, where they have some, and their labels.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    levels: int | None = None
    random: bool = False
    identity: Any = None

    @property
    def num_classes(self) -> int:
        """Number of classes; 1 for data without labels."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`, the same every time."""

    def draw(self, index: SupportsIndex, rng: np.random.Generator, flip: bool) -> Example:
        """Return example `index` as training sees it this time.

        If it may `flip`, it is mirrored, left for right, with probability 1/2.
        """
        example = self[index]
        if flip and rng.random() < 0.5:
            return {"x": example["x"][:, ::-1], "condition": example["condition"]}
        return example

    @property
    def contents(self) -> Contents:
        """What is there, without reading it."""
        return Contents(self.class_names, len(self), fingerprint(self.shape, self.identity))

    def describe(self) -> dict[str, str]:
        """Return a description of the data by topic."""
        names = ", ".join(self.class_names[:10]) + (", ..." if self.num_classes > 10 else "")
        return {
            "examples": f"{len(self):,}",
            "shape": " x ".join(map(str, self.shape)),
            "levels": str(self.levels or "continuous"),
            "classes": f"{self.num_classes}: {names}",
        }


class ArraySource(Source):
    """Examples held in memory.

    Args:
        x: (count, *shape), float32, images in [-1, 1]; or images as bytes.
        condition: (count,), the class of each.
        levels: number of grey levels; 256 for bytes.
        class_names: by label; the labels themselves by default.
    """

    def __init__(
        self,
        x: Float[np.ndarray, "count *shape"] | UInt8[np.ndarray, "count *shape"],
        condition: Int[np.ndarray, " count"],
        levels: int | None = None,
        class_names: Sequence[str] = (),
    ):
        self.x, self.condition, self.identity = x, condition, condition
        self.shape = x.shape[1:]
        self.levels = 256 if x.dtype == np.uint8 else levels
        labels = range(int(condition.max(initial=-1)) + 1)
        self.class_names = tuple(class_names) or tuple(map(str, labels))

    def __len__(self) -> int:
        return len(self.condition)

    def __getitem__(self, index: SupportsIndex) -> Example:
        return {"x": as_float(self.x[index]), "condition": self.condition[index]}


@dataclasses.dataclass(frozen=True)
class ImageSource(Source):
    """8-bit images that a function reads one by one.

    Args:
        read_image: returns the pixels and the label of the image with an index; can be pickled.
        count: number of images.
        shape: (height, width, channels).
        class_names: by label.
        identity: see `Source`.
    """

    read_image: Callable[[int], tuple[UInt8[np.ndarray, "height width channels"], int]]
    count: int
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    identity: Any = None
    levels = 256

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> Example:
        pixels, label = self.read_image(int(index))
        return {"x": as_float(pixels), "condition": np.asarray(label, np.int32)}


class DataSet(abc.ABC):
    """A data set: where it is and how to read it; a frozen dataclass, which a config can hold."""

    def __str__(self) -> str:
        """Return the first field, which says where the data are."""
        return str(getattr(self, dataclasses.fields(self)[0].name))  # pyright: ignore[reportArgumentType]

    def open(self, split: Split) -> Source:
        """Return a split.

        Raises:
            InputError: the data are missing or damaged, or the split is empty.
        """
        source = self._open(split)
        if not len(source):
            advice = "raise --data.held-out.share" if split == "held-out" else "add some"
            raise InputError(f"{self} has no example in the {split} split; {advice}")
        return source

    @property
    def sources(self) -> tuple[Path, ...]:
        """Folders of which any image that is not hidden is read as an example."""
        return ()

    def check_outside(self, out: Path) -> None:
        """Raise an InputError if images that are written to a folder would be read as examples."""
        for source in self.sources:
            path, source = out.resolve(), source.resolve()
            if not path.is_relative_to(source):
                continue
            if not any(part.startswith(".") for part in path.relative_to(source).parts):
                raise InputError(
                    f"{out} lies in {source}, where images that are written would be read as data; "
                    "choose a folder elsewhere"
                )

    @abc.abstractmethod
    def _open(self, split: Split) -> Source: ...


def as_float(pixels: np.ndarray) -> Float[np.ndarray, "..."]:
    """Return bytes as float32 in [-1, 1]; floats are returned as they are."""
    if pixels.dtype != np.uint8:
        return pixels
    scaled = np.divide(pixels, 127.5, dtype=np.float32)
    return np.subtract(scaled, 1, out=scaled)


def read(
    source: Source, indices: Indices
) -> tuple[Float[np.ndarray, "count *shape"], Int[np.ndarray, " count"]]:
    """Return the examples with these indices, (count, *shape), and their classes, (count,)."""
    examples = [source[int(index)] for index in indices]
    condition = np.asarray([example["condition"] for example in examples], np.int32)
    return np.stack([example["x"] for example in examples]), condition


def read_batches(
    source: Source, indices: Indices, size: int
) -> Iterator[tuple[Float[np.ndarray, "batch *shape"], Int[np.ndarray, " batch"]]]:
    """Yield what `read` returns for `size` indices at a time; the last batch may be smaller."""
    for start in range(0, len(indices), size):
        yield read(source, indices[start : start + size])


def sample_indices(source: Source, count: int, seed: int = 0) -> Int[np.ndarray, " count"]:
    """Return `count` distinct random indices of a source; all of them if it has fewer."""
    return np.random.default_rng(seed).permutation(len(source))[:count]


def load_into_memory(source: Source, count: int) -> ArraySource:
    """Return a source of at most `count` examples in memory, as float32.

    From a larger source they are a fixed random choice, in order.
    """
    if len(source) <= count and isinstance(source, ArraySource) and source.x.dtype != np.uint8:
        return source
    indices = np.arange(len(source))
    if len(source) > count:
        indices = np.sort(np.random.default_rng(0).choice(len(source), count, replace=False))
    return ArraySource(*read(source, indices), source.levels, source.class_names)
