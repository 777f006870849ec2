"""Images as they are found, decoded each time they are read."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from odelt_eqx.data.decode import BadImageError, check_shape, decode_image
from odelt_eqx.data.items import RawItems, find_common_shape, find_white
from odelt_eqx.data.raw import find_raw_images
from odelt_eqx.data.source import DataSet, ImageSource, Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.entry import typed
from odelt_eqx.errors import InputError, check_range
from odelt_eqx.images import ImageSize, height_width
from odelt_eqx.serialize import set_declared


@dataclasses.dataclass(frozen=True)
class Folder(DataSet):
    """A folder of images, a zip, a tar or Parquet files; see `odelt_eqx.data.raw` for classes.

    From a few thousand images on, `odelt prepare` pays: it decodes each once.

    Args:
        folder: the folder or file. In a folder, subfolders are the classes, by name, or splits if
            they are called `train` and `val`, `dev`, `test` or `eval`; files of labels come before
            either.
        size: (height, width) of the images, in pixels, or one number for both; they are cropped to
            this shape. None chooses one that suits them, see `find_common_shape`.
        channels: 3, or 1 for grey levels. None: 1 if all are grey.
        held_out_folder: images of the same kind that are the held-out split.
        held_out: which images are held out if neither that nor their names say so; their names
            are their paths in `folder`.
        image: column of Parquet files that holds encoded images.
        label: column of Parquet files, `metadata.csv` or `.jsonl` that holds classes.
        renumber: number the integers that occur as classes from 0 on.
        white: brightest value of images of more than 8 bits; by default it is found in some.
        max_failures: stop if a larger share of the images, and more than one, cannot be used. In
            place of each, the next one is read.
    """

    folder: Path
    size: ImageSize | None = None
    channels: int | None = None
    held_out_folder: Path | None = None
    held_out: HeldOut = HeldOut()
    image: str = "image"
    label: str = "label"
    renumber: bool = False
    white: int | None = None
    max_failures: float = 0.01

    def __post_init__(self) -> None:
        set_declared(self)
        size = 1 if self.size is None else self.size
        check_shape(size, 3 if self.channels is None else self.channels)
        check_range(self, "white", least=1)
        check_range(self, "max_failures", least=0, most=1)

    def find(self) -> RawItems:
        """Return the images of both splits, encoded; an InputError if there are none."""
        return self._find(self.folder)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder of the images, and that of the held-out ones, unless they are in Parquet."""
        folders = self.folder, self.held_out_folder
        return tuple(each for each in folders if each and not any(each.rglob("*.parquet")))

    def with_shape(self) -> "Folder":
        """Return this with a size and a number of channels, those of the images where it has none.

        Raises:
            InputError: the images are missing or cannot be read.
        """
        height, width, channels = self._shape(self.find())
        size = height if height == width else (height, width)
        return dataclasses.replace(self, size=size, channels=channels)

    def _shape(self, images: RawItems) -> tuple[int, int, int]:
        if self.size is not None and self.channels is not None:
            return (*height_width(self.size), self.channels)
        height, width, channels = find_common_shape(images)
        if self.size is not None:
            height, width = height_width(self.size)
        return height, width, self.channels or channels

    def _open(self, split: Split) -> ImageSource:
        images = self.find()
        height, width, channels = self._shape(images)
        white = self.white or find_white(images)
        if self.held_out_folder is None:
            images = images.split(split, self.held_out)
        elif split == "train":
            images = images.for_training()
        else:
            images = self._find(self.held_out_folder).relabel(images.class_names)
        read = _Reader(images, (height, width), channels, white, self.max_failures)
        identity = "/".join(images.names), images.labels
        shape = (height, width, channels)
        return ImageSource(read, len(images), shape, images.class_names, identity)

    def _find(self, path: Path) -> RawItems:
        return find_raw_images(path, self.image, self.label, self.renumber)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the pixels and the label of an image, or of the next one that can be used."""

    images: RawItems
    size: ImageSize
    channels: int
    white: int
    max_failures: float
    unusable: set[int] = dataclasses.field(default_factory=set)  # those that this process has met

    def __call__(self, index: int) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        images = self.images
        while True:
            try:
                data = images.read(images.locations[index])
                pixels = decode_image(data, self.size, self.channels, self.white)
                return pixels, int(images.labels[index])
            except Exception as error:  # a damaged archive raises anything
                self._skip(index, error)
            index = (index + 1) % len(images)

    def _skip(self, index: int, error: Exception) -> None:
        """Note that an image cannot be used, or raise an InputError if there are too many."""
        name, count = f"{self.images.path}/{self.images.names[index]}", len(self.images)
        reason = str(error) if isinstance(error, BadImageError | OSError) else repr(error)
        if index not in self.unusable:
            self.unusable.add(index)
            warnings.warn(f"{name} is skipped: {reason}", stacklevel=2)
        failures = len(self.unusable)
        if failures > max(1, self.max_failures * count) or failures == count:
            raise InputError(
                f"{failures} of {count} images cannot be used, the last {name}: {reason}; remove "
                f"them, raise data.max-failures, or see what {typed('prepare')} lists"
            ) from None
