"""Encoded images as they are found: in folders, zip and tar archives and Parquet files.

They are listed once and then read one by one, from any process. Sources are never written to.
"""

import dataclasses
import itertools
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from odelt_eqx.data.decode import BadImageError
from odelt_eqx.data.source import UNLABELLED, Indices
from odelt_eqx.errors import InputError, reason

SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".avif", ".jp2"),
}
"""Suffixes of the names of images; other files are ignored."""
MAX_BYTES = 2**28
"""Larger files are not images."""


@dataclasses.dataclass(frozen=True)
class RawImages:
    """Encoded images and their classes.

    Args:
        path: the folder or file that they are in.
        names: name of each, which identifies it.
        labels: class of each.
        class_names: by label.
        locations: location of each, an argument of `read`.
        read: returns the bytes at a location; raises what the archive raises.
    """

    path: Path
    names: Sequence[str]
    labels: Int[np.ndarray, " count"]
    class_names: tuple[str, ...]
    locations: Sequence[Any]
    read: Callable[[Any], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Indices) -> "RawImages":
        """Return the images with these indices."""
        names = [self.names[index] for index in indices]
        locations = [self.locations[index] for index in indices]
        labels = self.labels[np.asarray(indices, int)]
        return dataclasses.replace(self, names=names, labels=labels, locations=locations)

    def relabel(self, class_names: tuple[str, ...]) -> "RawImages":
        """Return the images labelled by other class names, which include theirs.

        Raises:
            InputError: a class is missing.
        """
        if missing := sorted(set(self.class_names) - set(class_names)):
            raise InputError(f"{self.path} has a class that the training data lack: {missing[0]}")
        labels = np.asarray([class_names.index(name) for name in self.class_names], np.int32)
        return dataclasses.replace(self, labels=labels[self.labels], class_names=class_names)


def find_raw_images(path: Path, image: str = "image", label: str = "label") -> RawImages:
    """Return the images in a folder, an archive or Parquet files.

    The class of an image is the first folder in which the paths of all differ; in Parquet files it
    is a column.

    Args:
        path: a folder of images, a `.zip`, a `.tar`, a `.parquet` or a folder of those.
        image: column of Parquet files that holds encoded images, as bytes or as Hugging Face's
            struct of bytes and path.
        label: column that holds classes, as integers or names; without it there are no classes.

    Raises:
        InputError: there are no images, or they cannot be read.
    """
    if path.is_dir():
        tables = sorted(p for p in path.rglob("*.parquet") if p.is_file())
        if tables:
            return _find_in_parquet(path, tables, image, label)
        return find_in_folder(path)
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    if path.suffix == ".parquet":
        return _find_in_parquet(path, [path], image, label)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = {name: name for name in sorted(archive.namelist())}
            return _label_by_path(path, members, partial(_read_zip, path))
        with tarfile.open(path, "r:") as archive:
            files = {m.name: (m.offset_data, m.size) for m in archive if m.isreg()}
            members = dict(sorted(files.items()))
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a zip, an uncompressed tar or Parquet: {reason(error)}; "
            "members of a compressed tar cannot be read one by one, decompress it first"
        ) from None
    return _label_by_path(path, members, partial(_read_tar, path))


def find_in_folder(folder: Path) -> RawImages:
    """Return the images in a folder and its subfolders, by path; hidden ones are ignored.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    paths = []
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(parent).relative_to(folder)
        paths += [(relative / name).as_posix() for name in sorted(files)]
    return _label_by_path(folder, {path: path for path in paths}, partial(_read_file, folder))


def _label_by_path(path: Path, members: dict[str, Any], read: Callable[[Any], bytes]) -> RawImages:
    """Return the images among files, given by name with their location, and their classes."""
    names = list(filter(_is_image, members))
    if not names:
        raise InputError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    folders = [name.split("/")[:-1] for name in names]
    pairs = zip(min(folders), max(folders), strict=False)
    depth = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    classes = [parts[depth] if len(parts) > depth else "" for parts in folders]
    class_names, labels = _number(classes)
    if class_names == ("",):
        class_names = UNLABELLED
    elif "" in class_names:
        raise InputError(
            f"{path} has images beside folders of images: {names[classes.index('')]}; move it "
            "into a folder, or the folders elsewhere"
        )
    return RawImages(path, names, labels, class_names, [members[name] for name in names], read)


def _is_image(name: str) -> bool:
    name = name.rsplit("/", 1)[-1]
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _number(classes: Sequence[str]) -> tuple[tuple[str, ...], Int[np.ndarray, " count"]]:
    """Return the distinct class names, sorted, and the label of each item."""
    class_names = tuple(sorted(set(classes)))
    labels = {name: label for label, name in enumerate(class_names)}
    return class_names, np.asarray([labels[name] for name in classes], np.int32)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadImageError(f"{size:,} bytes, over {MAX_BYTES:,}")


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    _check_size(path.stat().st_size)
    return path.read_bytes()


def _read_zip(path: Path, name: str) -> bytes:
    archive = _open_zip(path)
    _check_size(archive.getinfo(name).file_size)
    return archive.read(name)


@lru_cache(maxsize=1)
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _read_tar(path: Path, location: tuple[int, int]) -> bytes:
    offset, size = location
    _check_size(size)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _find_in_parquet(path: Path, files: list[Path], image: str, label: str) -> RawImages:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "Parquet files need pyarrow: pip install 'odelt-eqx[parquet]', or pip install pyarrow"
        ) from None
    names, locations, values, class_names = [], [], [], ()
    for file in files:
        try:
            table = pq.ParquetFile(file)
            columns = table.schema_arrow.names
            if image not in columns:
                raise InputError(
                    f"{file} has no column {image!r}; it has {', '.join(columns)}: name one by "
                    "--image"
                )
            if label in columns:
                values += table.read([label])[label].to_pylist()
                class_names = class_names or _huggingface_names(table.schema_arrow.metadata, label)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read: {reason(error)}") from None
        groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        rows = [(str(file), group, row) for group, n in enumerate(groups) for row in range(n)]
        name = file.name if file == path else file.relative_to(path).as_posix()
        names += [f"{name}#{row}" for row in range(len(rows))]
        locations += rows
    if not names:
        raise InputError(f"{path} has no rows")
    class_names, labels = _label_by_value(path, values, len(names), class_names)
    return RawImages(path, names, labels, class_names, locations, partial(_read_parquet, image))


def _label_by_value(
    path: Path, values: list[Any], count: int, class_names: tuple[str, ...]
) -> tuple[tuple[str, ...], Int[np.ndarray, " count"]]:
    """Return the class names and the label of each of `count` rows."""
    if not values:
        return UNLABELLED, np.zeros(count, np.int32)
    if len(values) != count or not all(isinstance(value, int | str) for value in values):
        raise InputError(f"some rows of {path} have no class; name another column by --label")
    if isinstance(values[0], str):
        return _number(values)
    if min(values) < 0:
        raise InputError(f"{path} has the class {min(values)}: are these rows unlabelled?")
    return class_names or tuple(map(str, range(max(values) + 1))), np.asarray(values, np.int32)


def _huggingface_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's `datasets` writes to the schema."""
    try:
        info = json.loads((metadata or {})[b"huggingface"])["info"]
        return tuple(info["features"][label]["names"])
    except (KeyError, ValueError, TypeError):
        return ()


def _read_parquet(image: str, location: tuple[str, int, int]) -> bytes:
    file, group, row = location
    value = _read_row_group(file, group, image)[row].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if value is not None and not isinstance(value, bytes):
        raise BadImageError(f"the column {image!r} holds {type(value).__name__}")
    return value or b""


@lru_cache(maxsize=1)
def _read_row_group(file: str, group: int, image: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read_row_group(group, [image])[image]
