"""A folder of images, decoded each time they are read."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from odelt_eqx.data.decode import BadImageError, check_shape, decode_image
from odelt_eqx.data.raw import RawImages, find_in_folder
from odelt_eqx.data.source import DataSet, ImageSource, Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError


@dataclasses.dataclass(frozen=True)
class Folder(DataSet):
    """A folder of images; its subfolders are the classes, if it has any.

    From a few thousand images on, `scripts/prepare.py` pays: it decodes each once.

    Args:
        folder: holds images, or one folder per class, sorted by name.
        size: height and width of the images, in pixels, cropped to squares.
        channels: 3, or 1 for grey levels.
        held_out_folder: a folder of the same kind that is the held-out split.
        held_out: which images are held out without such a folder; their names are their paths in
            `folder`.
    """

    folder: Path
    size: int
    channels: int = 3
    held_out_folder: Path | None = None
    held_out: HeldOut = HeldOut()

    def __post_init__(self) -> None:
        check_shape(self.size, self.channels)

    def _open(self, split: Split) -> ImageSource:
        images = find_in_folder(self.folder)
        if self.held_out_folder is None:
            images = images.take(np.flatnonzero(self.held_out.select(images.names, split)))
        elif split == "held-out":
            images = find_in_folder(self.held_out_folder).relabel(images.class_names)
        read = partial(_read, images, self.size, self.channels)
        shape = (self.size, self.size, self.channels)
        return ImageSource(read, len(images), shape, images.class_names)


def _read(
    images: RawImages, size: int, channels: int, index: int
) -> tuple[UInt8[np.ndarray, "size size channels"], int]:
    """Return the pixels and the label of an image."""
    try:
        data = images.read(images.locations[index])
        return decode_image(data, size, channels), int(images.labels[index])
    except (OSError, BadImageError) as error:
        raise InputError(
            f"{images.path / images.names[index]} cannot be used: {error}; remove it, or have "
            "scripts/prepare.py skip all such images"
        ) from None
