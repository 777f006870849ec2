"""A folder of pictures, decoded each time they are seen."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from odelt_eqx.data.pictures import SUFFIXES, BadPictureError, decode
from odelt_eqx.data.source import Example, Source, Split, as_float
from odelt_eqx.data.splits import HeldOut, check_not_empty
from odelt_eqx.errors import InputError

UNLABELLED = ("all",)
"""The class names of what has no classes."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of pictures; its subfolders are the classes, if it has any.

    For more than a few thousand pictures `scripts/prepare.py` pays: each is decoded once.

    Args:
        folder: holds pictures, or one folder a class, sorted by name.
        size: height and width of the squares that training sees.
        channels: 3, or 1 for grey levels.
        held_out_folder: a folder of the same kind that is held out.
        held_out: which pictures are held out where there is no such folder; their names are their
            paths in the folder.
    """

    folder: Path
    size: int
    channels: int = 3
    held_out_folder: Path | None = None
    held_out: HeldOut = HeldOut()

    def __post_init__(self) -> None:
        """Check the shape."""
        check_shape(self.size, self.channels)

    def __str__(self) -> str:
        """Return what messages call it."""
        return str(self.folder)

    def open(self, split: Split) -> "FolderSource":
        """Return a split.

        Raises:
            InputError: there is no such folder, or nothing in it, or pictures beside classes.
        """
        names = list(picture_names(self.folder))
        class_names, labels = classes_of(names, self.folder)
        if self.held_out_folder is None:
            chosen = np.flatnonzero(self.held_out.of(names, split))
            names, labels = [names[i] for i in chosen], labels[chosen]
            folder = self.folder
        elif split == "held-out":
            folder, names = self.held_out_folder, list(picture_names(self.held_out_folder))
            own, places = classes_of(names, folder)
            if unknown := sorted(set(own) - set(class_names)):
                raise InputError(f"{folder} has classes that {self} has not: {unknown[0]}")
            labels = np.asarray([class_names.index(name) for name in own], np.int32)[places]
        else:
            folder = self.folder
        check_not_empty(len(names), split, self)
        return FolderSource(folder, names, labels, class_names, (self.size, self.channels))


class FolderSource(Source):
    """Pictures that are decoded when they are asked for."""

    levels = 256

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        labels: np.ndarray,
        class_names: Sequence[str],
        shape: tuple[int, int],
    ):
        """Read `names` in `folder`, of the classes `labels`, at `shape`: size and channels."""
        self._folder, self._names, self._labels = folder, names, labels
        self._size, self._channels = shape
        self.image_shape = (shape[0], *shape)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._names)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`.

        Raises:
            InputError: its file cannot be used.
        """
        path = self._folder / self._names[int(index)]
        try:
            pixels = decode(path.read_bytes(), self._size, self._channels)
        except (OSError, BadPictureError) as error:
            raise InputError(
                f"{path} cannot be used: {error}; remove it, or have scripts/prepare.py pass over "
                "all such pictures"
            ) from None
        return {"image": as_float(pixels), "label": self._labels[index]}


def check_shape(size: int, channels: int) -> None:
    """Raise an InputError unless pictures can have such a shape."""
    if size < 1:
        raise InputError(f"size must be at least 1; got {size}")
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3; got {channels}")


def picture_names(folder: Path) -> Iterator[str]:
    """Yield the paths in `folder` of all pictures, sorted, with slashes; hidden ones apart.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    empty = True
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(where).relative_to(folder)
        for name in sorted(files):
            if is_picture(name):
                empty = False
                yield (relative / name).as_posix()
    if empty:
        raise InputError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")


def is_picture(name: str) -> bool:
    """Whether a file is called as pictures are."""
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in SUFFIXES


def classes_of(names: Sequence[str], where: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes, sorted, and each item's label.

    The class is the first folder in which the paths of the items differ; if all lie in one, there
    is one class.

    Raises:
        InputError: some lie in a class and some beside the classes.
    """
    parents = [name.split("/")[:-1] for name in names]
    shared = 0
    if parents:
        ends = zip(min(parents), max(parents), strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    firsts = [parent[shared] if len(parent) > shared else "" for parent in parents]
    class_names = tuple(sorted(set(firsts)))
    if class_names == ("",):
        return UNLABELLED, np.zeros(len(names), np.int32)
    if "" in class_names:
        raise InputError(
            f"{where} has pictures beside folders of pictures: {names[firsts.index('')]}; move it "
            "into a folder, or the folders elsewhere"
        )
    place = {name: label for label, name in enumerate(class_names)}
    return class_names, np.asarray([place[first] for first in firsts], np.int32)
