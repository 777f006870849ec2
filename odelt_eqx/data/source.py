"""Where images come from: sources that any index can be read from."""

from collections.abc import Callable
from typing import Literal, Protocol, SupportsIndex, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from odelt_eqx.errors import InputError

DataName = Literal["digits", "celeba-hq-latents", "imagenet-latents"]
Split = Literal["train", "held-out"]


class Example(TypedDict):
    """One image, float32 in [-1, 1], and its class."""

    image: Float[np.ndarray, "height width channels"]
    label: Int[np.ndarray, ""]


@runtime_checkable
class Source(Protocol):
    """A random-access source of examples, as grain reads them."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`."""
        ...


class ArraySource:
    """Examples held in memory."""

    def __init__(
        self,
        images: Float[np.ndarray, "count height width channels"],
        labels: Int[np.ndarray, " count"],
        levels: int | None = None,
    ):
        """Hold `images`, float32 in [-1, 1], their classes, and how many grey levels they have."""
        self.images = images
        self.labels = labels
        self.levels = levels

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, (height, width, channels)."""
        return self.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """One more than the largest class."""
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`."""
        return {"image": self.images[index], "label": self.labels[index]}


def digits(split: Split) -> ArraySource:
    """Return scikit-learn's bundled 8 x 8 handwritten digits, 1,797 of them in ten classes.

    One in five of each class, the same ones always, is held out.

    Args:
        split: "train" (1,437 digits) or "held-out" (360).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    labels = classes.astype(np.int32)
    every = np.arange(len(labels))
    train, held_out = train_test_split(every, test_size=0.2, stratify=labels, random_state=0)
    chosen = train if split == "train" else held_out
    return ArraySource(images[chosen], labels[chosen], levels=17)


SOURCES: dict[DataName, Callable[[Split], ArraySource]] = {"digits": digits}
"""The data sets that can be read."""


def open_source(name: DataName, split: Split) -> ArraySource:
    """Return a split of the data set called `name`; an InputError if it cannot be read yet."""
    if name not in SOURCES:
        raise InputError(f"the data {name!r} cannot be read yet; there is {', '.join(SOURCES)}")
    return SOURCES[name](split)
