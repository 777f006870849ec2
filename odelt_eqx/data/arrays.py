"""Data sets that fit in memory: digits, IDX files, NPZ files."""

import dataclasses
import gzip
import math
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int, UInt8

from odelt_eqx.data.source import ArraySource, Split
from odelt_eqx.data.splits import HeldOut, check_not_empty
from odelt_eqx.errors import InputError


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


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's 8 x 8 handwritten digits."""

    def __str__(self) -> str:
        """Return what messages call it."""
        return "digits"

    def open(self, split: Split) -> ArraySource:
        """Return a split."""
        return digits(split)


PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "held-out": ("t10k", "test")}


@dataclasses.dataclass(frozen=True)
class Idx:
    """The four files of MNIST and its relatives, compressed or not; t10k is held out.

    Args:
        folder: holds `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` and the same of
            `t10k`.
        pad: black pixels added on each side; 2 makes 32 x 32 of 28 x 28.
        class_names: by label; their numbers unless given.
    """

    folder: Path
    pad: int = 0
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return what messages call it."""
        return str(self.folder)

    def open(self, split: Split) -> ArraySource:
        """Return a split.

        Raises:
            InputError: a file is missing or is no IDX file of bytes, or they do not fit together.
        """
        images, labels = self._read(split, "images"), self._read(split, "labels")
        if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
            raise InputError(
                f"{self.folder} has {split} images of shape {images.shape} and labels of shape "
                f"{labels.shape}; expected (count, height, width) and (count,)"
            )
        check_not_empty(len(labels), split, self)
        images = images if images.ndim == 4 else images[..., None]
        if self.pad:
            side = (self.pad, self.pad)
            images = np.pad(images, ((0, 0), side, side, (0, 0)))
        return ArraySource(images, labels.astype(np.int32), class_names=self.class_names)

    def _read(self, split: Split, kind: str) -> UInt8[np.ndarray, "..."]:
        for part in PARTS[split]:
            for path in sorted(self.folder.glob(f"{part}-{kind}*")):
                return read_idx(path)
        raise InputError(
            f"{self.folder} has no file {PARTS[split][0]}-{kind}-idx*; give the folder of the IDX "
            "files by data:idx --data.folder"
        )


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Return the bytes in an IDX file, compressed by gzip if its name ends in .gz.

    Two zeros, the type (8, unsigned bytes), the number of axes, the size of each as a big-endian
    32-bit integer, the values.

    Raises:
        InputError: it is no such file.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * axes], ">u4").tolist())
    if not axes or len(shape) < axes or len(data) != 4 + 4 * axes + math.prod(shape):
        raise InputError(f"{path} is no whole IDX file of bytes; fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Npz:
    """The arrays `images` and `labels` of an NPZ file.

    Args:
        path: holds `images` (count, height, width) or (count, height, width, channels), bytes or
            floats in [-1, 1]; `labels` (count,), if there are any; `class_names`, likewise.
        held_out_path: a file of the same kind that is held out.
        held_out: which examples are held out where there is no such file; their names are their
            places, so append new ones.
    """

    path: Path
    held_out_path: Path | None = None
    held_out: HeldOut = HeldOut()

    def __str__(self) -> str:
        """Return what messages call it."""
        return str(self.path)

    def open(self, split: Split) -> ArraySource:
        """Return a split.

        Raises:
            InputError: a file is missing or holds other arrays, or the split is empty.
        """
        path = self.held_out_path if split == "held-out" and self.held_out_path else self.path
        images, labels, names = _read_npz(path)
        if self.held_out_path is None:
            chosen = self.held_out.of(map(str, range(len(images))), split)
            names = names or tuple(map(str, range(int(labels.max(initial=0)) + 1)))
            images, labels = images[chosen], labels[chosen]
        check_not_empty(len(images), split, self)
        return ArraySource(images, labels, class_names=names)


def _read_npz(path: Path) -> tuple[np.ndarray, Int[np.ndarray, " count"], tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["images"]
            labels = file["labels"] if "labels" in file else np.zeros(len(images), np.int32)
            names = tuple(map(str, file["class_names"])) if "class_names" in file else ()
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no images and labels: {problem}") from None
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path} has images of shape {images.shape} and labels of shape {labels.shape}, "
            f"{labels.dtype}; expected (count, height, width, channels) and integers (count,)"
        )
    if images.dtype != np.uint8:
        if images.dtype.kind != "f" or not np.abs(images).max(initial=0) <= 1:
            raise InputError(f"images in {path} must be bytes or floats in [-1, 1]")
        images = images.astype(np.float32)
    return images, labels.astype(np.int32), names
