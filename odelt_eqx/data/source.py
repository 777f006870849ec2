"""What training and evaluation ask of data: examples that any index can be read from."""

import abc
from collections.abc import Sequence
from typing import Literal, SupportsIndex, TypedDict

import numpy as np
from jaxtyping import Float, Int, UInt8

Split = Literal["train", "held-out"]
Pixels = UInt8[np.ndarray, "height width channels"] | Float[np.ndarray, "height width channels"]


class Example(TypedDict):
    """One image, float32, a picture in [-1, 1], and its class."""

    image: Float[np.ndarray, "height width channels"]
    label: Int[np.ndarray, ""]


class Source(abc.ABC):
    """One split of a data set, as grain reads it; any thread or process may read at any time.

    Attributes:
        image_shape: shape of one image, (height, width, channels).
        class_names: name of each class, by label.
        levels: grey levels of a pixel, 256 for 8 bits; None where there are none.
        random: whether an example is another each time it is seen.
    """

    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    levels: int | None = None
    random: bool = False

    @property
    def num_classes(self) -> int:
        """How many classes there are; 1 if nothing is labelled."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abc.abstractmethod
    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`, the same at all times."""

    def draw(self, index: SupportsIndex, rng: np.random.Generator, flip: bool) -> Example:
        """Return example `index` as it is seen this time.

        Args:
            index: which.
            rng: decides what is left to chance; nothing else does.
            flip: show the mirror image, left for right, half of the times.
        """
        example = self[index]
        return mirrored(example) if flip and rng.random() < 0.5 else example

    def describe(self) -> dict[str, str]:
        """Return what there is to say of the data, by name."""
        names = ", ".join(self.class_names[:10]) + (", ..." if self.num_classes > 10 else "")
        return {
            "examples": f"{len(self):,}",
            "shape": " x ".join(map(str, self.image_shape)),
            "levels": str(self.levels or "continuous"),
            "classes": f"{self.num_classes}: {names}",
        }


class ArraySource(Source):
    """Examples held in memory."""

    def __init__(
        self,
        images: Float[np.ndarray, "count height width channels"]
        | UInt8[np.ndarray, "count height width channels"],
        labels: Int[np.ndarray, " count"],
        levels: int | None = None,
        class_names: Sequence[str] = (),
    ):
        """Hold images and their classes.

        Args:
            images: float32 in [-1, 1], or 8 bits.
            labels: their classes.
            levels: grey levels; 256 of 8 bits.
            class_names: by label; their numbers unless given.
        """
        self.images, self.labels = images, labels
        self.levels = 256 if images.dtype == np.uint8 else levels
        self.image_shape = images.shape[1:]
        count = int(labels.max()) + 1 if len(labels) else 0
        self.class_names = tuple(class_names) or tuple(map(str, range(count)))

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`."""
        return {"image": as_float(self.images[index]), "label": self.labels[index]}


def as_float(pixels: np.ndarray) -> Float[np.ndarray, "..."]:
    """Return pixels as float32 in [-1, 1]; those that are no bytes are so already."""
    if pixels.dtype != np.uint8:
        return pixels
    scaled = pixels.astype(np.float32)
    scaled /= np.float32(127.5)
    scaled -= np.float32(1)
    return scaled


def mirrored(example: Example) -> Example:
    """Return the mirror image, left for right."""
    return {"image": example["image"][:, ::-1], "label": example["label"]}


def in_memory(source: Source, count: int) -> ArraySource:
    """Return at most `count` examples as arrays, float32 in [-1, 1]: all, or the same ones always.

    Args:
        source: where they come from; `random` ones are taken as `source[index]` has them.
        count: how many; where there are more, so many are chosen evenly at random.
    """
    if len(source) <= count and isinstance(source, ArraySource) and source.images.dtype != np.uint8:
        return source
    chosen = np.arange(len(source))
    if len(source) > count:
        chosen = np.sort(np.random.default_rng(0).choice(len(source), count, replace=False))
    images = np.empty((len(chosen), *source.image_shape), np.float32)
    labels = np.empty(len(chosen), np.int32)
    for row, index in enumerate(chosen):
        example = source[index]
        images[row], labels[row] = example["image"], example["label"]
    return ArraySource(images, labels, source.levels, source.class_names)
