"""Data sets in arrays: digits, IDX files, NPZ files, files of ADM."""

import dataclasses
import gzip
import math
import zlib
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from odelt_eqx.array_files import check_unpacked, map_array, read_arrays
from odelt_eqx.data.labels import number_ids
from odelt_eqx.data.source import ArraySource, DataSet, ImageSource, Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError, check_range, reason
from odelt_eqx.serialize import set_declared


@lru_cache  # scikit-learn reads them from text, which takes a quarter of a second
def digits(split: Split) -> ArraySource:
    """Return scikit-learn's bundled 8 x 8 handwritten digits, 1,797 of them in ten classes.

    Args:
        split: "train" (1,437 digits) or "held-out" (360, a fixed fifth of each class).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    rows = np.arange(len(labels))
    train, held_out = train_test_split(rows, test_size=0.2, stratify=labels, random_state=0)
    chosen = train if split == "train" else held_out
    source = ArraySource(images[chosen], labels[chosen].astype(np.int32), levels=17)
    for array in (source.x, source.condition):
        array.flags.writeable = False  # as every caller gets the same
    return source


@dataclasses.dataclass(frozen=True)
class Digits(DataSet):
    """scikit-learn's 8 x 8 handwritten digits."""

    def __str__(self) -> str:
        return "digits"

    def _open(self, split: Split) -> ArraySource:
        return digits(split)


MAX_AXES = 4
"""Axes of an IDX file: the images, their height, width and perhaps channels."""
PREFIXES: dict[Split, tuple[str, ...]] = {"train": ("train",), "held-out": ("t10k", "test")}
"""How the names of a split's IDX files begin."""


@dataclasses.dataclass(frozen=True)
class Idx(DataSet):
    """The four files of MNIST and its relatives, compressed or not; t10k is held out.

    Args:
        folder: holds `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` and the same of
            `t10k`.
        pad: black pixels added on each side; 2 makes 32 x 32 of 28 x 28.
        class_names: by label; the labels themselves by default.
        renumber: number the labels that occur in the training data as classes from 0 on.
    """

    folder: Path
    pad: int = 0
    class_names: tuple[str, ...] = ()
    renumber: bool = False

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "pad", least=0)

    def _open(self, split: Split) -> ArraySource:
        images, ids = self._read(split, "images"), self._read(split, "labels")
        images = _check_shapes(images, ids, self.folder)
        known = ids if split == "train" else self._read("train", "labels")
        what = f"{self.folder} ({split} labels)"
        names, labels = number_ids(ids, what, self.class_names, self.renumber, known)
        sides = (self.pad, self.pad)
        images = np.pad(images, ((0, 0), sides, sides, (0, 0)))
        return ArraySource(images, labels, class_names=names)

    def _read(self, split: Split, kind: str) -> UInt8[np.ndarray, "..."]:
        for prefix in PREFIXES[split]:
            for path in sorted(self.folder.glob(f"{prefix}-{kind}*")):
                if path.is_file():  # Kaggle's MNIST has a folder beside each file
                    return read_idx(path)
        raise InputError(
            f"{self.folder} has no file {PREFIXES[split][0]}-{kind}-idx*; give the folder of the "
            "IDX files by data:idx --data.folder"
        )


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Return the bytes in an IDX file, compressed by gzip if its name ends in .gz.

    The format: two zeros, the type (8, unsigned bytes), the number of axes, the size of each as a
    big-endian 32-bit integer, the values.

    Raises:
        InputError: the file cannot be read or is not of this format.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            axes = head[3] if head[:3] == b"\0\0\x08" and len(head) > 3 else 0
            if 1 <= axes <= MAX_AXES:
                shape = tuple(np.frombuffer(file.read(4 * axes), ">u4").tolist())
                check_unpacked(size := math.prod(shape), path.stat().st_size)
                data = file.read(size + 1)
                if (len(shape), len(data)) == (axes, size):
                    return np.frombuffer(data, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    raise InputError(f"{path} is not a whole IDX file of bytes; download it again")


@dataclasses.dataclass(frozen=True)
class Npz(DataSet):
    """The arrays `images` and `labels` of an NPZ file.

    Args:
        path: holds `images` (count, height, width) or (count, height, width, channels), bytes,
            truth values (True is white) or floats in [-1, 1]; optionally `labels` (count,) and
            `class_names` (classes,), strings.
        range: the values of `images` that are black and white; by default 0 and 255 of bytes, -1
            and 1 of floats.
        renumber: number the labels that occur in the training data as classes from 0 on.
        held_out_path: a file of the same kind that is the held-out split.
        held_out: which examples are held out without such a file; their names are their indices,
            so append new ones.
    """

    path: Path
    held_out_path: Path | None = None
    held_out: HeldOut = HeldOut()
    range: tuple[float, float] | None = None
    renumber: bool = False

    def __post_init__(self) -> None:
        set_declared(self)
        if self.range is not None and not -np.inf < self.range[0] < self.range[1] < np.inf:
            raise InputError(f"range must be two rising numbers; got {self.range}")

    def _open(self, split: Split) -> ArraySource:
        images, ids, given = self._read(self.path)
        class_names, labels = number_ids(ids, self.path, given, self.renumber)
        if self.held_out_path is None:
            chosen = self.held_out.select(map(str, range(len(images))), split)
            images, labels = images[chosen], labels[chosen]
        elif split == "held-out":
            images, own, theirs = self._read(self.held_out_path)
            if given and theirs and given != theirs:
                raise InputError(f"{self.held_out_path} names other classes than {self.path}")
            _, labels = number_ids(own, self.held_out_path, class_names, self.renumber, ids)
        return ArraySource(images, labels, class_names=class_names)

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Return images as bytes or in [-1, 1], labels as they are, and the names of classes."""
        what, others = "a file of images and labels", ("labels", "class_names")
        arrays = read_arrays(path, what, "images", optional=others)
        labels = arrays.get("labels", np.zeros(arrays["images"].shape[:1], np.int32))
        images = _check_shapes(arrays["images"], labels, path)
        if images.dtype == bool:
            images = images.astype(np.uint8) * np.uint8(255 if self.range is None else 1)
        if self.range is not None or images.dtype != np.uint8:
            images = _scale(images, self.range, path)
        elif images.max(initial=0) == 1:
            raise InputError(
                f"images in {path} are bytes of 0 and 1: give --data.range 0 1 if 1 is white, "
                "--data.range 0 255 if it is nearly black"
            )
        names = arrays.get("class_names", np.array((), str))
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise InputError(
                f"{path} has class_names of shape {names.shape}, {names.dtype}; expected strings "
                "(classes,)"
            )
        if names.dtype.kind == "S":
            names = np.char.decode(names, "utf-8", "replace")
        return images, labels, tuple(names.tolist())


ADM = "a file of images as ADM writes them (arr_0, bytes)"
MOST_CLASSES = 2**20
"""Classes of such a file, at most: each has a name."""


@dataclasses.dataclass(frozen=True)
class Adm(DataSet):
    """The images `arr_0` of an NPZ file: reference batches of ADM, or its format of samples.

    They are read from the disk as they are used.

    Args:
        path: holds `arr_0`, bytes (count, height, width, 3), and labels `arr_1`, if it has them.
        grey: read one channel; the three must be equal.
        held_out: which images are held out; none by default. Their names are their indices.
    """

    path: Path
    grey: bool = False
    held_out: HeldOut = HeldOut(share=0.0)

    def __post_init__(self) -> None:
        set_declared(self)

    def _open(self, split: Split) -> ImageSource:
        images, identity = map_array(self.path, ADM, "arr_0")
        labels = read_arrays(self.path, ADM, optional=("arr_1",)).get("arr_1")
        labels = np.zeros(images.shape[:1], np.int32) if labels is None else labels
        _check_shapes(images, labels, self.path)
        if images.dtype != np.uint8 or images.shape[3:] not in ((1,), (3,)):
            raise InputError(f"{self.path} is not {ADM}: arr_0 is {images.dtype}, {images.shape}")
        low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
        if not 0 <= low <= high < MOST_CLASSES:
            raise InputError(f"{self.path} is not {ADM}: its labels go from {low} to {high}")
        rows = np.flatnonzero(self.held_out.select(map(str, range(len(images))), split))
        names = tuple(map(str, range(high + 1)))
        read_image = partial(_read_adm, self, identity, rows, labels)
        shape = (*images.shape[1:3], 1 if self.grey else images.shape[3])
        return ImageSource(read_image, len(rows), shape, names, (identity, rows, labels))


def _read_adm(
    data: Adm, identity: str, rows: np.ndarray, labels: np.ndarray, index: int
) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
    row = rows[index]
    pixels = np.asarray(_map_adm(data.path, identity)[row])
    first = pixels[..., :1]
    if data.grey and (pixels != first).any():
        raise InputError(f"image {row} of {data.path} has colours; grey images were asked for")
    return first if data.grey else pixels, int(labels[row])


@lru_cache
def _map_adm(path: Path, identity: str) -> np.ndarray:  # one mapping in each process
    return map_array(path, ADM, "arr_0")[0]


def _scale(
    images: np.ndarray, values: tuple[float, float] | None, path: Path
) -> Float[np.ndarray, "count height width channels"]:
    """Return images as float32 in [-1, 1]; an InputError if their values are not as declared."""
    if images.dtype.kind not in "fiu":
        raise InputError(f"images in {path} are of type {images.dtype}, not numbers")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise InputError(f"images in {path} have values that are not finite")
    found = f"{images.dtype} from {images.min(initial=0):g} to {images.max(initial=0):g}"
    if values is None and images.dtype.kind != "f":
        raise InputError(
            f"images in {path} are {found}, not bytes: say what is black and what is white by "
            "data.range, as in --data.range 0 4095"
        )
    black, white = values or (-1.0, 1.0)
    if not (images.min(initial=black) >= black and images.max(initial=white) <= white):
        raise InputError(
            f"images in {path} are {found}, outside {black:g} to {white:g}; say what is black and "
            "what is white by data.range, as in --data.range 0 1"
        )
    if values is None and images.size and images.min() >= 0:
        raise InputError(
            f"images in {path} are {found}, and nothing lies below 0: give --data.range 0 1 if 0 "
            "is black, --data.range -1 1 if it is grey"
        )
    scaled = images.astype(np.float32)
    return scaled if values is None else (scaled - black) * np.float32(2 / (white - black)) - 1


def _check_shapes(images: np.ndarray, labels: np.ndarray, path: Path) -> np.ndarray:
    """Return images with a channel axis, or raise an InputError if the shapes do not fit."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] > 4:
        raise InputError(
            f"{path} has images of shape {images.shape}, with channels first; store them last: "
            "numpy.moveaxis(images, 1, -1)"
        )
    fits = images.ndim == 4 and 0 not in images.shape[1:] and labels.shape == images.shape[:1]
    if not fits or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path} has images of shape {images.shape} and labels of shape {labels.shape}, "
            f"{labels.dtype}; expected (count, height, width, channels) and integers (count,)"
        )
    return images
