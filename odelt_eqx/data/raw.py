"""Encoded images as they are found: in folders, zip and tar archives and Parquet files.

They are listed once and then read one by one, from any process. Sources are never written to.
"""

import itertools
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from odelt_eqx.data.items import RawItems, check_held_out, check_size, folders_of
from odelt_eqx.data.labels import (
    UNLABELLED,
    held_out_items,
    labels_in_files,
    number_names,
    number_values,
    split_names,
)
from odelt_eqx.data.parquet import find_in_parquet
from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import check_packing, read_member

SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".avif", ".jp2"),
}
"""Suffixes of the names of images; other files are ignored."""


def find_raw_images(
    path: Path, image: str = "image", label: str = "label", renumber: bool = False
) -> RawItems:
    """Return the images in a folder, an archive or Parquet files.

    The class of an image is what files of labels say (`odelt_eqx.data.labels`), or else the first
    folder in which the paths of all differ; in Parquet files it is a column. Folders or files
    called `train` and `val`, `dev`, `test` or `eval` are splits, not classes. What is hidden is
    left out.

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
    _open_zip.cache_clear()  # the file may be another than when it was last read
    if path.is_dir():
        tables = sorted(p for p in path.rglob("*.parquet") if p.is_file())
        tables = [p for p in tables if not is_hidden(p.relative_to(path).as_posix())]
        if tables:
            return find_in_parquet(path, tables, image, **how)
        files = list_folder(path)
        if not any(map(is_image, files)) and any(name.endswith(".tar") for name in files):
            tars = [path / name for name in files if name.endswith(".tar")]
            return _find_in_tars(path, tars, **how)
        return _label_by_path(path, files, partial(_read_file, path), **how)
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    if path.suffix == ".parquet":
        return find_in_parquet(path, [path], image, **how)
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
        archives = [name for name in members if name.lower().endswith((".zip", ".tgz", ".tar.gz"))]
        advice = f", but {archives[0]}: unpack it" if archives else ""
        raise InputError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))}){advice}")
    folders = list(map(folders_of, names))
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
    check_held_out(path, class_names, labels, held_out)
    locations = [members[name] for name in names]
    return RawItems(path, names, labels, class_names, locations, read, held_out)


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


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    check_size(path.stat().st_size)
    return path.read_bytes()


def _read_zip(path: Path, name: str) -> bytes:
    archive = _open_zip(path)
    member = archive.getinfo(name)
    check_size(member.file_size)
    return read_member(archive, member)


@lru_cache(maxsize=1)
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _read_tar(location: tuple[str, int, int]) -> bytes:
    path, offset, size = location
    check_size(size)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
