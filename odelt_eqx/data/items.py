"""What is found in folders and archives: encoded images or stored latents, not yet read."""

import dataclasses
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from odelt_eqx.data.decode import WHITES, BadImageError, brightest, find_shape
from odelt_eqx.data.labels import UNLABELLED
from odelt_eqx.data.source import Indices, Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError

LARGEST = 64
"""Height and width, at most, that are chosen for images of which nobody said a size."""
MAX_BYTES = 2**28
"""Larger files are not images."""


@dataclasses.dataclass(frozen=True)
class RawItems:
    """Encoded images, or latents as others store them, and their classes.

    Args:
        path: the folder or file that they are in.
        names: name of each, which identifies it.
        labels: class of each.
        class_names: by label.
        locations: location of each, an argument of `read`.
        read: returns the bytes of the image, or the array, at a location; raises what the archive
            raises.
        held_out: which of them are held out, where the names of folders or files say so.
    """

    path: Path
    names: Sequence[str]
    labels: Int[np.ndarray, " count"]
    class_names: tuple[str, ...]
    locations: Sequence[Any]
    read: Callable[[Any], Any]
    held_out: Bool[np.ndarray, " count"] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Indices) -> "RawItems":
        """Return the items with these indices."""
        names = [self.names[index] for index in indices]
        locations = [self.locations[index] for index in indices]
        rows = np.asarray(indices, int)
        held_out = None if self.held_out is None else self.held_out[rows]
        return dataclasses.replace(
            self, names=names, labels=self.labels[rows], locations=locations, held_out=held_out
        )

    def split(self, split: Split, by: HeldOut) -> "RawItems":
        """Return the items of a split; `by` decides where no names of folders or files do."""
        if self.held_out is None:
            return self.take(np.flatnonzero(by.select(self.names, split)))
        return self.take(np.flatnonzero(self.held_out == (split == "held-out")))

    def for_training(self) -> "RawItems":
        """Return the items without those that the names of folders or files hold out."""
        return self if self.held_out is None else self.take(np.flatnonzero(~self.held_out))

    def relabel(self, class_names: tuple[str, ...]) -> "RawItems":
        """Return the items labelled by other class names, which include theirs.

        Raises:
            InputError: a class is missing.
        """
        if self.class_names == class_names:  # in which two may share a name, as ImageNet's cranes
            return self
        own, numbers = self.class_names, {name: label for label, name in enumerate(class_names)}
        if own == UNLABELLED and own[0] not in numbers:
            # A folder that holds all images is taken for no class, unless these names know it.
            own = tuple(set(numbers).intersection(*map(folders_of, self.names)))
            if len(own) != 1:
                some = ", ".join(class_names[:3]) + ", ..." * (len(class_names) > 3)
                raise InputError(f"{self.path} has no classes, the training data have {some}")
        if missing := sorted(set(own) - numbers.keys()):
            raise InputError(f"{self.path} has a class that the training data lack: {missing[0]}")
        labels = np.asarray([numbers[name] for name in own], np.int32)
        return dataclasses.replace(self, labels=labels[self.labels], class_names=class_names)


def check_held_out(
    path: Path,
    class_names: Sequence[str],
    labels: Int[np.ndarray, " count"],
    held_out: Bool[np.ndarray, " count"] | None,
) -> None:
    """Raise an InputError if all images of a class are held out."""
    if held_out is None:
        return
    lacking = np.setdiff1d(labels[held_out], labels[~held_out])
    if len(lacking):
        raise InputError(
            f"{path} has the class {class_names[lacking[0]]!r} in its held-out split alone; give "
            "the training images alone, or held-out ones of the same classes"
        )


def check_size(size: int) -> None:
    """Raise a BadImageError unless a file of so many bytes may be an image."""
    if not 0 <= size <= MAX_BYTES:
        raise BadImageError(f"{size:,} bytes, over {MAX_BYTES:,}")


def folders_of(name: str) -> list[str]:
    """Return the folders in the path of a file, in the form of Unicode that most systems write.

    macOS writes letters and their accents apart.
    """
    *folders, _ = unicodedata.normalize("NFC", name).split("/")
    return [folder for folder in folders if folder not in ("", ".")]


def find_white(images: RawItems) -> int:
    """Return the brightest value of a data set whose images have more than 8 bits.

    It is that of 8, 10, 12, 14 or 16 bits, the least that holds what a few of the images hold.
    """
    highest = max(map(brightest, _read_some(images)), default=255)
    white = next((white for white in WHITES if white >= highest), WHITES[-1])
    if highest > WHITES[0]:
        warnings.warn(
            f"{images.path}: values up to {highest} are found in images of more than 8 bits, so "
            f"{white} is white; the option white says otherwise",
            stacklevel=2,
        )
    return white


def find_common_shape(images: RawItems) -> tuple[int, int, int]:
    """Return (height, width, channels) that suit a few of the images, 64 pixels at most.

    The shape is theirs if all have one that can be cut into at most 8 x 8 patches, or else near the
    median of their shapes, in multiples of 8. There is one channel if all are grey.

    Raises:
        InputError: none of them can be read.
    """
    shapes = [shape for shape in map(find_shape, _read_some(images)) if shape is not None]
    if not shapes:
        raise InputError(f"{images.path}: none of the images that were tried can be read")
    channels = max(shape[2] for shape in shapes)
    height, width = (float(np.median(sides)) for sides in np.transpose(shapes)[:2])
    same = len({shape[:2] for shape in shapes}) == 1 and max(height, width) <= LARGEST
    if same and math.gcd(int(height), int(width)) * 8 >= max(height, width):
        return int(height), int(width), channels
    scale = min(1.0, LARGEST / max(height, width))
    rounded = [max(8, 8 * round(scale * side / 8)) for side in (height, width)]
    return rounded[0], rounded[1], channels


def _read_some(images: RawItems) -> Iterator[bytes]:
    """Yield some of the images, of all parts; those that cannot be read are left out."""
    for index in np.unique(np.linspace(0, len(images) - 1, min(len(images), 16)).astype(int)):
        try:
            yield images.read(images.locations[index])
        except Exception:  # archives raise anything; training will say what is wrong
            continue
