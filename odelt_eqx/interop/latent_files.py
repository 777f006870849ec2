"""Latents as other repositories store them: found, and then read one by one, from any process.

What lies in a folder says what it is. Channels come first in all of them, as in PyTorch.

| found | made by | holds |
|---|---|---|
| `*mean-std*.npy`, (2 x channels, h, w) each | REPA, EDM2 | means and standard deviations |
| `*features/*.npy`, (1, channels, h, w) each | fast-DiT, for DiT and SiT | scaled samples |
| `*.safetensors`: `latents`, `latents_flip` | LightningDiT | samples of images and mirror images |
| `*.npz` or `NAME.npy`: `latents`, `latents_flip` | NumPy | scaled samples of either |
| `*.npz` or `NAME.npy`: `mean`, `std` | NumPy | means and standard deviations |

Classes are those of `dataset.json` and other files of labels (`odelt_eqx.data.labels`), of
`*labels/*.npy` beside the features, or of an array `labels`; without any there are none.
`latents_stats.pt` beside arrays holds the mean and the standard deviation of each channel.

Nothing is unpickled, no file names another, and arrays are mapped into memory, which gives them no
more of it than their file has.
"""

import contextlib
import dataclasses
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from odelt_eqx.array_files import Part, list_zip, map_npy
from odelt_eqx.data.items import RawItems
from odelt_eqx.data.labels import UNLABELLED, labels_in_files, number_ids, number_values
from odelt_eqx.data.raw import is_hidden, is_image, list_folder
from odelt_eqx.errors import InputError, reason
from odelt_eqx.interop.named import Stored, unknown_elements
from odelt_eqx.interop.torch_file import open_torch
from odelt_eqx.nn.autoencoder import PerChannel

STATISTICS = "latents_stats.pt"
SUFFIXES = (".npy", ".npz", ".safetensors")
SAMPLES, MOMENTS, LABELS = ("latents", "latents_flip"), ("mean", "std"), "labels"
MOST_CHANNELS = 2**16
"""Channels of which there are statistics, at most."""


@dataclasses.dataclass(frozen=True)
class StoredLatents:
    """Latents as they are stored.

    Args:
        items: their `read` returns arrays (views, channels, h, w): one view, or two where the
            latents of mirror images are stored.
        moments: the channels are means, then as many standard deviations; otherwise samples.
        factors: scale and shift that give them unit variance, see `AutoencoderConfig`; None if the
            source does not say.
    """

    items: RawItems
    moments: bool
    factors: tuple[PerChannel, PerChannel] | None


def holds_latents(source: Path) -> bool:
    """Return whether a source has arrays, and no images: whether `find_latents` is for it."""
    names = list(list_folder(source)) if source.is_dir() else [source.name]
    if source.suffix == ".zip" and source.is_file():
        # A damaged archive raises anything; whoever reads it will say what is wrong.
        with contextlib.suppress(Exception), zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    others = any(is_image(name) or name.endswith((".tar", ".parquet")) for name in names)
    return not others and any(map(_is_array, names))


def find_latents(path: Path, label: str = "label", renumber: bool = False) -> StoredLatents:
    """Return the latents in a folder, in a file of arrays or in an uncompressed zip.

    Args:
        path: the folder or file.
        label: column of files of labels that holds classes.
        renumber: number the integers that occur as classes from 0 on.

    Raises:
        InputError: there are none, they cannot be read, or some lack a class that others have.
    """
    if path.is_dir():
        members = {name: Part(str(path / name)) for name in list_folder(path)}
    elif not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    elif path.suffix in SUFFIXES:
        return _find_in_arrays(path, [path], renumber)
    else:
        members = list_zip(path)
    files = sorted(filter(_is_array, members))
    if not files:
        raise InputError(f"{path} holds no latents ({', '.join(SUFFIXES)})")
    if path.is_dir():
        found = [path / name for name in files]
        parents = [file.parent for file in found if file.name in ("latents.npy", "mean.npy")]
        sets = [*(file for file in found if file.suffix != ".npy"), *dict.fromkeys(parents)]
        if sets:
            return _find_in_arrays(path, sets, renumber)
    return _find_in_files(path, members, files, label, renumber)


def _is_array(name: str) -> bool:
    return name.endswith(SUFFIXES) and not is_hidden(name)


def _find_in_files(
    path: Path, members: Mapping[str, Part], files: Iterable[str], label: str, renumber: bool
) -> StoredLatents:
    """Return latents that have a file each."""
    names = [name for name in files if not name.rpartition("/")[0].endswith(LABELS)]
    kinds = {"mean-std" in name.rsplit("/", 1)[-1] for name in names}
    if len(kinds) != 1:
        found = "mean-std.npy files and others" if names else "labels only"
        raise InputError(f"{path} holds {found}; give a folder of latents of one kind")
    classes = labels_in_files(path, members, _read_bytes, names, label)
    if classes is None:
        classes = _labels_beside(path, members, names)
    class_names, labels = UNLABELLED, np.zeros(len(names), np.int32)
    if classes is not None:
        class_names, labels = number_values(classes, path, renumber=renumber)
    locations = [members[name] for name in names]
    items = RawItems(path, names, labels, class_names, locations, _read_file)
    (moments,) = kinds
    return StoredLatents(items, moments, None if moments else (1.0, 0.0))


def _labels_beside(
    path: Path, members: Mapping[str, Part], names: Sequence[str]
) -> list[int] | None:
    """Return the class that `Xlabels/NAME` says of each `Xfeatures/NAME`; None without any."""
    pairs = [name.rpartition("/") for name in names]
    files = [f"{folder.removesuffix('features')}{LABELS}/{name}" for folder, _, name in pairs]
    missing = [name for name, file in zip(names, files, strict=True) if file not in members]
    if len(missing) == len(names):
        return None
    if missing:
        raise InputError(f"{path} has no label for {len(missing)} of its latents: {missing[0]}")
    labels = []
    for file in files:
        array = map_npy(members[file])
        if array.size != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{path}/{file} is {array.dtype} {array.shape}, not one integer")
        labels.append(int(array.item()))
    return labels


def _find_in_arrays(path: Path, sets: Sequence[Path], renumber: bool) -> StoredLatents:
    """Return latents that are rows of arrays, in one set of arrays or in several of one shape."""
    names, locations, labels, kinds = [], [], [], {}
    _open_arrays.cache_clear()  # the files may be others than when this process last read them
    for file in sets:
        arrays = _open_arrays(file)
        used, own = _used(arrays), arrays.get(LABELS)
        if not used:
            has = ", ".join(arrays) or "none of a known name"
            raise InputError(
                f"{file} has no array {SAMPLES[0]}, nor {' and '.join(MOMENTS)}; it has {has}"[:300]
            )
        shapes = [arrays[name].shape for name in used]
        if len({*shapes}) > 1 or len(shapes[0]) != 4 or 0 in shapes[0]:
            raise InputError(
                f"{file} has {', '.join(used)} of shape {', '.join(map(str, shapes))}; expected "
                "(count, channels, h, w)"
            )
        count, *shape = shapes[0]
        labels.append(np.zeros(count, np.int32) if own is None else own[()])
        if labels[-1].shape != (count,) or labels[-1].dtype.kind not in "iu":
            raise InputError(
                f"{file} has {LABELS} {labels[-1].dtype} {labels[-1].shape} for {count} latents; "
                "expected an integer each"
            )
        kinds[f"{', '.join(used)} {tuple(shape)}, {'no ' * (own is None)}{LABELS}"] = file
        if len(kinds) > 1:
            both = "; ".join(f"{file} has {kind}" for kind, file in kinds.items())
            raise InputError(f"arrays must be of one kind: {both}")
        name = file.name if file == path else file.relative_to(path).as_posix()
        names += [f"{name}#{row}" for row in range(count)]
        locations += [(file, row) for row in range(count)]
    class_names, numbers = UNLABELLED, np.concatenate(labels)
    if LABELS in arrays:
        class_names, numbers = number_ids(numbers, path, renumber=renumber)
    items = RawItems(path, names, numbers, class_names, locations, _read_row)
    return StoredLatents(items, used[0] == MOMENTS[0], _read_factors(sets[0], used[0]))


def _used(arrays: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays that are latents, in their order; none if one is missing."""
    if SAMPLES[0] in arrays:
        return [name for name in SAMPLES if name in arrays]
    return list(MOMENTS) if all(name in arrays for name in MOMENTS) else []


def _read_factors(file: Path, kind: str) -> tuple[PerChannel, PerChannel] | None:
    """Return what the statistics beside arrays say, or else the arrays' own kind.

    LightningDiT stores the autoencoder's output as it is.
    """
    path = (file if file.is_dir() else file.parent) / STATISTICS
    if not path.is_file():
        return (1.0, 0.0) if kind == SAMPLES[0] and file.suffix != ".safetensors" else None
    with open_torch(path) as found:
        stored = [found.get(name) for name in MOMENTS] if isinstance(found, dict) else []
        # A view may have more elements than the file.
        small = [s for s in stored if isinstance(s, Stored) and math.prod(s.shape) <= MOST_CHANNELS]
        values = [one.read().astype(float).ravel() for one in small]
    if len(values) != 2:
        raise InputError(
            f"{path} has no tensors {' and '.join(MOMENTS)} of at most {MOST_CHANNELS:,} numbers"
        )
    mean, std = values
    if not (std > 0).all():
        raise InputError(f"{path} has standard deviations that are not positive")
    return tuple((1 / std).tolist()), tuple(mean.tolist())


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """An array in a file, of which rows are read as they are asked for."""

    name: str
    shape: tuple[int, ...]
    array: Any

    def __getitem__(self, rows: int | tuple[()]) -> np.ndarray:
        try:
            return np.asarray(self.array[rows])
        except AttributeError:
            raise unknown_elements(self.array, self.name) from None


@lru_cache(maxsize=4)
def _open_arrays(file: Path) -> dict[str, _Rows]:
    """Return the arrays of a set by name: a file, or a folder of files that are one array each."""
    if file.suffix == ".safetensors":
        try:
            tensors: Any = safetensors.safe_open(file, framework="numpy")
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: _Rows(name, tuple(one.get_shape()), one) for name, one in slices.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{file} is not a .safetensors file: {reason(error)}") from None
    known = {f"{name}.npy": name for name in (*SAMPLES, *MOMENTS, LABELS)}
    members: dict[str, Part]
    if file.suffix == ".npz":
        members = list_zip(file)
    elif file.is_dir():
        members = {name: Part(str(file / name)) for name in known if (file / name).is_file()}
    else:
        members = {"latents.npy": Part(str(file))}
    arrays = {known[name]: map_npy(members[name]) for name in known if name in members}
    return {name: _Rows(name, array.shape, array) for name, array in arrays.items()}


def _read_row(location: tuple[Path, int]) -> np.ndarray:
    """Return the row of a set of arrays as (views, channels, h, w)."""
    file, row = location
    arrays = _open_arrays(file)
    used = _used(arrays)
    rows = [arrays[name][row] for name in used]
    return np.stack(rows) if used[0] == SAMPLES[0] else np.concatenate(rows)[None]


def _read_file(location: Part) -> np.ndarray:
    """Return the only latent in an `.npy` file as (1, channels, h, w)."""
    array = map_npy(location)
    array = array if array.ndim == 4 else array[None]
    if array.ndim != 4 or len(array) != 1:
        raise InputError(f"its shape is {array.shape}; expected (channels, h, w)")
    return array


def _read_bytes(location: Part) -> bytes:
    path, start, end = location
    with open(path, "rb") as file:
        last = file.seek(0, 2)
        file.seek(start)
        return file.read(min(last, last if end is None else end) - start)
