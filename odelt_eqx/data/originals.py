"""Encoded pictures where others left them: a folder, a zip or tar archive, Parquet files.

They are listed once and then read one by one, from any process; nothing is ever written there.
"""

import dataclasses
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from odelt_eqx.data.folder import UNLABELLED, classes_of, is_picture, picture_names
from odelt_eqx.data.pictures import BadPictureError
from odelt_eqx.errors import InputError

MAX_BYTES = 2**28
"""A file that claims more is no picture."""


@dataclasses.dataclass(frozen=True)
class Originals:
    """Encoded pictures and their classes.

    Args:
        path: where they are.
        names: what each is called; its identity.
        labels: class of each.
        class_names: by label.
        read: returns the file at a place; raises what the archive raises.
        places: the place of each.
    """

    path: Path
    names: Sequence[str]
    labels: Int[np.ndarray, " count"]
    class_names: tuple[str, ...]
    read: Callable[[Any], bytes]
    places: Sequence[Any]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)

    def between(self, first: int, last: int) -> "Originals":
        """Return those from `first` to before `last`."""
        own = slice(first, last)
        return dataclasses.replace(
            self, names=self.names[own], labels=self.labels[own], places=self.places[own]
        )


def find_originals(path: Path, image: str = "image", label: str = "label") -> Originals:
    """Return the pictures in a folder, an archive or Parquet files.

    The class of a picture is the first folder in which the paths of all differ; in Parquet files it
    is a column.

    Args:
        path: a folder of pictures, a `.zip`, a `.tar`, a `.parquet` or a folder of those.
        image: column of Parquet files that holds encoded pictures, as bytes or as Hugging Face's
            struct of bytes and path.
        label: column that holds classes, as integers or names; without it nothing is labelled.

    Raises:
        InputError: there is nothing of the kind.
    """
    if path.is_dir():
        if files := sorted(p for p in path.rglob("*.parquet") if p.is_file()):
            return _parquet(path, files, image, label)
        names = list(picture_names(path))
        return _by_path(path, names, _FolderReader(path), names)
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    if path.suffix == ".parquet":
        return _parquet(path, [path], image, label)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = sorted({i.filename for i in archive.infolist() if is_picture(i.filename)})
            return _by_path(path, names, _ZipReader(path), names)
        with tarfile.open(path, "r:") as archive:
            files = {m.name: (m.offset_data, m.size) for m in archive if m.isreg()}
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a zip, an uncompressed tar or Parquet: {error}; of a "
            "compressed tar no part can be read by itself, decompress it first"
        ) from None
    names = sorted(filter(is_picture, files))
    return _by_path(path, names, _TarReader(path), [files[name] for name in names])


def _by_path(path: Path, names: list[str], read: Any, places: Sequence[Any]) -> Originals:
    if not names:
        raise InputError(f"{path} holds no pictures")
    class_names, labels = classes_of(names, path)
    return Originals(path, names, labels, class_names, read, places)


@dataclasses.dataclass(frozen=True)
class _FolderReader:
    path: Path

    def __call__(self, name: str) -> bytes:
        file = self.path / name
        _check_size(file.stat().st_size)
        return file.read_bytes()


@dataclasses.dataclass(frozen=True)
class _ZipReader:
    path: Path

    def __call__(self, name: str) -> bytes:
        archive = _opened_zip(self.path)
        _check_size(archive.getinfo(name).file_size)
        return archive.read(name)


@lru_cache(maxsize=1)
def _opened_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclasses.dataclass(frozen=True)
class _TarReader:
    path: Path

    def __call__(self, place: tuple[int, int]) -> bytes:
        offset, size = place
        _check_size(size)
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadPictureError(f"{size:,} bytes, over {MAX_BYTES:,}")


def _parquet(path: Path, files: list[Path], image: str, label: str) -> Originals:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "Parquet files need pyarrow: pip install 'odelt-eqx[parquet]', or pip install pyarrow"
        ) from None
    names, values, places, given = [], [], [], ()
    for file in files:
        try:
            reader = pq.ParquetFile(file)
            schema = reader.schema_arrow
            if image not in schema.names:
                raise InputError(
                    f"{file} has no column {image!r}; it has {', '.join(schema.names)}: name one "
                    "by --image"
                )
            if label in schema.names:
                values += reader.read([label])[label].to_pylist()
                given = given or _huggingface_names(schema.metadata, label)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read: {error}") from None
        own = file.name if file == path else file.relative_to(path).as_posix()
        rows = 0
        for group in range(reader.num_row_groups):
            count = reader.metadata.row_group(group).num_rows
            places += [(str(file), group, row) for row in range(count)]
            names += [f"{own}#{rows + row}" for row in range(count)]
            rows += count
    if not names:
        raise InputError(f"{path} has no rows")
    class_names, labels = _classes_of_values(path, values, len(names), given)
    return Originals(path, names, labels, class_names, _ParquetReader(image), places)


def _classes_of_values(
    path: Path, values: list[Any], count: int, given: Sequence[str]
) -> tuple[tuple[str, ...], Int[np.ndarray, " count"]]:
    """Return the names of the classes and the label of each row."""
    if not values:
        return UNLABELLED, np.zeros(count, np.int32)
    if len(values) != count or not all(isinstance(v, int | str) for v in values):
        raise InputError(f"some rows of {path} have no class; name another column by --label")
    if isinstance(values[0], str):
        names = tuple(sorted(set(values)))
        place = {name: label for label, name in enumerate(names)}
        return names, np.asarray([place[value] for value in values], np.int32)
    if min(values) < 0:
        raise InputError(f"{path} has the class {min(values)}: are these rows unlabelled?")
    names = tuple(given) or tuple(map(str, range(max(values) + 1)))
    return names, np.asarray(values, np.int32)


def _huggingface_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's `datasets` leaves in a schema."""
    try:
        info = json.loads((metadata or {})[b"huggingface"])["info"]
        return tuple(info["features"][label]["names"])
    except (KeyError, ValueError, TypeError):
        return ()


@dataclasses.dataclass(frozen=True)
class _ParquetReader:
    image: str

    def __call__(self, place: tuple[str, int, int]) -> bytes:
        file, group, row = place
        value = _row_group(file, group, self.image)[row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if value is not None and not isinstance(value, bytes):
            raise BadPictureError(f"the column {self.image!r} holds {type(value).__name__}")
        return value or b""


@lru_cache(maxsize=1)
def _row_group(file: str, group: int, image: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read_row_group(group, [image])[image]
