"""Encoded images as they are found: in folders, zip and tar archives and Parquet files.

They are listed once and then read one by one, from any process. Sources are never written to.
"""

import dataclasses
import itertools
import math
import os
import re
import tarfile
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from odelt_eqx.array_files import check_unpacked
from odelt_eqx.data.decode import WHITES, BadImageError, brightest, find_shape
from odelt_eqx.data.labels import (
    UNLABELLED,
    held_out_items,
    labels_in_files,
    note_columns,
    number_names,
    number_values,
    split_names,
)
from odelt_eqx.data.source import Indices, Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import check_packing, parse_json, read_member

SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".avif", ".jp2"),
}
"""Suffixes of the names of images; other files are ignored."""
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
        own, numbers = self.class_names, {name: label for label, name in enumerate(class_names)}
        if own == UNLABELLED and own[0] not in numbers:
            # A folder that holds all images is taken for no class, unless these names know it.
            own = tuple(set(numbers).intersection(*map(_folders, self.names)))
            if len(own) != 1:
                some = ", ".join(class_names[:3]) + ", ..." * (len(class_names) > 3)
                raise InputError(f"{self.path} has no classes, the training data have {some}")
        if missing := sorted(set(own) - numbers.keys()):
            raise InputError(f"{self.path} has a class that the training data lack: {missing[0]}")
        labels = np.asarray([numbers[name] for name in own], np.int32)
        return dataclasses.replace(self, labels=labels[self.labels], class_names=class_names)


def find_raw_images(
    path: Path, image: str = "image", label: str = "label", renumber: bool = False
) -> RawItems:
    """Return the images in a folder, an archive or Parquet files.

    The class of an image is what files of labels say (`odelt_eqx.data.labels`), or else the first
    folder in which the paths of all differ; in Parquet files it is a column. Folders or files
    called `train` and `val` or `test` are splits, not classes. What is hidden is left out.

    Args:
        path: a folder of images, a `.zip`, a `.tar`, a `.parquet` or a folder of the last two.
        image: column of Parquet files that holds encoded images, as bytes or as Hugging Face's
            struct of bytes and path; the only such column if there is none of this name.
        label: column that holds classes, as integers or names; without it there are no classes.
        renumber: number the integers that occur as classes from 0 on.

    Raises:
        InputError: there are no images, they cannot be read, or all of a class are held out.
    """
    how = {"label": label, "renumber": renumber}
    for opened in (_open_zip, _read_row_group):
        opened.cache_clear()  # the files may be others than when this process last read them
    if path.is_dir():
        tables = sorted(p for p in path.rglob("*.parquet") if p.is_file())
        tables = [p for p in tables if not is_hidden(p.relative_to(path).as_posix())]
        if tables:
            return _find_in_parquet(path, tables, image, **how)
        files = list_folder(path)
        if not any(map(is_image, files)) and any(name.endswith(".tar") for name in files):
            tars = [path / name for name in files if name.endswith(".tar")]
            return _find_in_tars(path, tars, **how)
        return _label_by_path(path, files, partial(_read_file, path), **how)
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    if path.suffix == ".parquet":
        return _find_in_parquet(path, [path], image, **how)
    if not zipfile.is_zipfile(path):
        return _find_in_tars(path, [path], **how)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                check_packing(member)
            # Windows writes backslashes.
            members = {name.replace("\\", "/"): name for name in sorted(archive.namelist())}
    except Exception as error:  # a damaged archive raises anything
        raise InputError(f"{path} cannot be read as a zip: {reason(error)}") from None
    return _label_by_path(path, members, partial(_read_zip, path), **how)


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


def list_folder(folder: Path) -> dict[str, str]:
    """Return the files in a folder and its subfolders, by path; hidden ones are left out.

    So is what is no file: pipes and devices, whose reading may never end, and links to nothing.
    Links to folders are followed, but no folder is listed twice: not under a link if it is listed
    under its own name.
    """
    hide = lambda names: sorted(name for name in names if not name.startswith("."))
    own, root, paths, others = set(), folder.resolve(), [], []
    for parent, subfolders, _ in os.walk(root):
        subfolders[:] = hide(subfolders)
        own.add(_identity(parent))
    listed = {_identity(folder)}
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        relative = Path(parent).relative_to(folder)
        names, subfolders[:] = hide(subfolders), []
        for name in names:
            path = os.path.join(parent, name)
            linked = Path(os.path.realpath(path)) != root / relative / name
            if (new := _identity(path)) not in (listed | own if linked else listed):
                listed.add(new)
                subfolders.append(name)
        for name in sorted(files):
            regular = os.path.isfile(os.path.join(parent, name))
            (paths if regular else others).append((relative / name).as_posix())
    if others:
        more = f" and {len(others) - 1:,} more" if others[1:] else ""
        warnings.warn(f"{folder}: {others[0]}{more} left out: no file", stacklevel=2)
    return {path: path for path in paths}


def _identity(path: str | Path) -> tuple[int, int]:
    """Return what tells a folder from all others."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _find_in_tars(path: Path, files: Sequence[Path], **how: Any) -> RawItems:
    """Return the images in tar archives; several are told apart by their names."""
    members: dict[str, Any] = {}
    for file in files:
        start = "" if file == path else f"{file.relative_to(path).as_posix()}/"
        try:
            with tarfile.open(file, "r:") as archive:
                found: dict[str, Any] = {}
                last = -1
                for member in archive:
                    if member.offset <= last:  # a negative size leads back, again and again
                        raise ValueError(f"{member.name} does not lie after the member before it")
                    last = member.offset
                    if member.isreg():
                        found[member.name] = (str(file), member.offset_data, member.size)
                    elif member.islnk() and member.linkname in found:
                        found[member.name] = found[member.linkname]  # a second name of a file
        except Exception as error:  # a damaged archive raises anything
            raise InputError(
                f"{file} cannot be read as a zip, an uncompressed tar or Parquet: {reason(error)}; "
                "members of a compressed tar cannot be read one by one, decompress it first"
            ) from None
        members |= {start + name: found[name] for name in sorted(found)}
    return _label_by_path(path, members, _read_tar, tars=len(files) > 1, **how)


def _label_by_path(
    path: Path,
    members: dict[str, Any],
    read: Callable[[Any], bytes],
    label: str = "label",
    renumber: bool = False,
    tars: bool = False,
) -> RawItems:
    """Return the images among files, given by name with their location, and their classes.

    Names of several `tars` begin with that of the archive, which may be a split but is no class.
    """
    members = {name: members[name] for name in members if not is_hidden(name)}
    names = list(filter(is_image, members))
    if not names:
        raise InputError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    folders = list(map(_folders, names))
    depth = _common(folders)
    tops = [parts[depth] if len(parts) > depth else "" for parts in folders]
    splits, held_out = split_names(tops), None
    if splits is not None:
        used = held_out_items(splits, path)
        names, folders = [names[i] for i in used], [folders[i] for i in used]
        held_out = np.fromiter(used.values(), bool)
    if splits is not None or tars:
        folders = [parts[:depth] + parts[depth + 1 :] for parts in folders]
        depth = _common(folders)
    values = labels_in_files(path, members, read, names, label)
    if values is not None:
        class_names, labels = number_values(values, path, renumber=renumber)
    else:
        classes = [parts[depth] if len(parts) > depth else "" for parts in folders]
        class_names, labels = number_names(classes)
        if class_names == ("",):
            class_names = UNLABELLED
        elif "" in class_names:
            raise InputError(
                f"{path} has images beside folders of images: {names[classes.index('')]}; move it "
                "into a folder, or the folders elsewhere"
            )
    _check_held_out(path, class_names, labels, held_out)
    locations = [members[name] for name in names]
    return RawItems(path, names, labels, class_names, locations, read, held_out)


def _check_held_out(
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


def _folders(name: str) -> list[str]:
    """Return the folders in the path of a file, in the form of Unicode that most systems write.

    macOS writes letters and their accents apart.
    """
    return unicodedata.normalize("NFC", name).split("/")[:-1]


def _common(folders: Sequence[list[str]]) -> int:
    """Return how many folders all paths begin with."""
    pairs = zip(min(folders), max(folders), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def is_image(name: str) -> bool:
    """Return whether a file that has this path is taken for an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a file that has this path is hidden, or in a hidden folder.

    So are the folders `__MACOSX` in zips of macOS.
    """
    hides = lambda part: part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))
    return any(map(hides, name.split("/")))


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_BYTES:
        raise BadImageError(f"{size:,} bytes, over {MAX_BYTES:,}")


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    _check_size(path.stat().st_size)
    return path.read_bytes()


def _read_zip(path: Path, name: str) -> bytes:
    archive = _open_zip(path)
    member = archive.getinfo(name)
    _check_size(member.file_size)
    return read_member(archive, member)


@lru_cache(maxsize=1)
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _read_tar(location: tuple[str, int, int]) -> bytes:
    path, offset, size = location
    _check_size(size)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _find_in_parquet(
    path: Path, files: list[Path], image: str, label: str, renumber: bool
) -> RawItems:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "Parquet files need pyarrow: pip install 'odelt-eqx[parquet]', or pip install pyarrow"
        ) from None
    relative = [file.name if file == path else file.relative_to(path).as_posix() for file in files]
    splits = _splits_of_files(relative, path)
    names, locations, values, held_out, class_names = [], [], [], [], ()
    for file, name in zip(files, relative, strict=True):
        if splits is not None and name not in splits:
            continue
        try:
            table = pq.ParquetFile(file)
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) > file.stat().st_size:
                raise OSError(f"it claims {sum(groups):,} rows, more than it has bytes")
            column = _image_column(table.schema_arrow, image, file)
            columns = table.schema_arrow.names
            for group in range(len(groups)):
                _check_column(file, table.metadata, column, [group])
            if label in columns:
                values += _read_labels(file, label, table.schema_arrow.field(label).type)
                class_names = class_names or _huggingface_names(table.schema_arrow.metadata, label)
            else:
                others = [other for other in columns if not f"{column}.".startswith(f"{other}.")]
                if others:
                    note_columns(path, label, others)
        except InputError:
            raise
        except Exception as error:  # a damaged file raises anything
            raise InputError(f"{file} cannot be read: {reason(error)}") from None
        rows = [
            (str(file), column, group, row) for group, n in enumerate(groups) for row in range(n)
        ]
        names += [f"{name}#{row}" for row in range(len(rows))]
        locations += rows
        held_out += [splits is not None and splits[name]] * len(rows)
    if not names:
        raise InputError(f"{path} has no rows")
    labels = np.zeros(len(names), np.int32)
    if values:
        if len(values) != len(names) or None in values:
            raise InputError(
                f"some rows of {path} have no class; name another column by the option label"
            )
        class_names, labels = number_values(values, path, class_names, renumber)
    parts = None if splits is None else np.asarray(held_out)
    class_names = class_names or UNLABELLED
    _check_held_out(path, class_names, labels, parts)
    return RawItems(path, names, labels, class_names, locations, _read_parquet, parts)


def _splits_of_files(names: Sequence[str], what: Path) -> dict[str, bool] | None:
    """Return the files that are used, and whether each is held out; None if none names a split."""
    for part in (0, -1):  # the first folder, or the file itself
        splits = split_names([name.split("/")[part] for name in names])
        if splits is not None:
            return {names[index]: out for index, out in held_out_items(splits, what).items()}
    return None


def _image_column(schema: Any, image: str, file: Path) -> str:
    """Return the column of images: `image`, or the only one of bytes or of a struct with bytes.

    Of a struct only the bytes are read: beside them may be lists, which unpack to any length.
    """
    from pyarrow import types

    found = {}
    for field in schema:
        kind, path = field.type, field.name
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind, path = kind.field("bytes").type, f"{path}.bytes"
        if types.is_dictionary(kind):
            kind = kind.value_type
        if re.fullmatch("(large_)?binary(_view)?", str(kind)):
            found[field.name] = path
    if image in found:
        return found[image]
    if image in schema.names:
        raise InputError(
            f"{file} has a column {image!r} of {schema.field(image).type}, not of bytes; name "
            "another by the option image"
        )
    if len(found) != 1:
        raise InputError(
            f"{file} has no column {image!r}; it has {', '.join(schema.names)}: name one by the "
            "option image"
        )
    return next(iter(found.values()))


def _read_labels(file: Path, label: str, kind: Any) -> list[Any]:
    """Return a column of classes.

    Raises:
        InputError: it holds neither whole numbers nor names.
    """
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    named = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not (named or types.is_integer(kind) or types.is_null(kind)):
        raise InputError(
            f"{file} has items whose class is neither a number nor a name: the column {label!r} "
            f"holds {kind}"
        )
    values: list[Any] = []
    for chunk in _read_column(file, label).chunks:
        if named:
            names = [*chunk.dictionary.to_pylist(), None]
            values += [names[index] for index in chunk.indices.fill_null(-1).to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def _huggingface_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's `datasets` writes to the schema."""
    try:
        info = parse_json((metadata or {})[b"huggingface"])["info"]
        names = info["features"][label]["names"]
    except (KeyError, ValueError, TypeError):
        return ()
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if known else ()


def _read_parquet(location: tuple[str, str, int, int]) -> bytes:
    file, column, group, row = location
    value = _read_row_group(file, column, group)[row].as_py()
    value = (value.get("bytes") if isinstance(value, dict) else value) or b""
    _check_size(len(value))
    return value


@lru_cache(maxsize=1)
def _read_row_group(file: str, column: str, group: int) -> Any:
    return _read_column(Path(file), column, group)


def _read_column(file: Path, name: str, group: int | None = None) -> Any:
    """Return a column of a row group, or of all; what a small file repeats often is held once.

    Raises:
        ValueError: it would unpack to far more than its own size.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    groups = range(metadata.num_row_groups) if group is None else [group]
    _check_column(file, metadata, name, groups)
    index = _column_index(metadata, name)
    repeated = [name] if metadata.schema.column(index).physical_type == "BYTE_ARRAY" else None
    table = pq.ParquetFile(file, metadata=metadata, read_dictionary=repeated)
    return table.read_row_groups(groups, [name]).column(0)


def _check_column(file: Path, metadata: Any, name: str, groups: Iterable[int]) -> None:
    """Raise a ValueError if a column of row groups would unpack to far more than its own size."""
    index = _column_index(metadata, name)
    chunks = [metadata.row_group(group).column(index) for group in groups]
    packed = min(sum(chunk.total_compressed_size for chunk in chunks), file.stat().st_size)
    check_unpacked(sum(chunk.total_uncompressed_size for chunk in chunks), packed)


def _column_index(metadata: Any, name: str) -> int:
    """Return the place of a column, or of a field of a struct, among those that a file stores."""
    return [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(name)
