"""Arrays in NumPy's files, read without trusting what these claim."""

import math
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import atomic_write, check_packing, fingerprint, reading

UNPACKED, RATIO = 2**26, 100
"""What is compressed may unpack to so many bytes, or to so many times its own size."""


class Part(NamedTuple):
    """Where something lies in a file.

    Attributes:
        path: the file.
        start: its first byte.
        end: the byte after its last; None is the end of the file.
    """

    path: str
    start: int = 0
    end: int | None = None


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an `.npz` file atomically."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_arrays(
    path: Path, what: str, *names: str, optional: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return arrays of an `.npz` file by name; objects in it are never unpickled.

    Args:
        path: the file.
        what: what it should be, for the message: "a file of statistics (mu and sigma)".
        *names: arrays that it must have.
        optional: arrays that are read if it has them. All others are left alone.

    Raises:
        InputError: it is missing or damaged, lacks one of the arrays, or would unpack to far more
            than its own size.
    """
    with reading(path, what):
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive, as .npz files are")
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                if name not in file.files:
                    raise KeyError(f"it has no array {name!r}")
            wanted = [name for name in file.files if name in {*names, *optional}]
            members = [file.zip.getinfo(f"{name}.npy") for name in wanted]
            packed = min(sum(m.compress_size for m in members), path.stat().st_size)
            check_unpacked(sum(member.file_size for member in members), packed)
            for member in members:
                check_packing(member)
                _check_header(file.zip, member)
            return {name: file[name] for name in wanted}


def check_unpacked(size: int, packed: int) -> None:
    """Raise a ValueError if `packed` bytes would unpack to far more than their own size."""
    if size > UNPACKED and size > RATIO * packed:
        gib = f"{size / 2**30:.1f} GiB"
        raise ValueError(f"it unpacks to {gib}; save it uncompressed if that is right")


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise a ValueError unless an array has the size that its header claims."""
    with archive.open(member) as file:
        shape, _, dtype = _read_header(file)
        claimed = file.tell() + math.prod(shape) * dtype.itemsize
    odd = min(shape, default=0) < 0 or max(shape, default=0) > claimed or not dtype.itemsize
    if not dtype.hasobject and (odd or claimed != member.file_size):
        raise ValueError(f"{member.filename} claims the shape {shape}, which is not its size")


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an `.npy` file: shape, whether in Fortran's order, and type."""
    major, _ = np.lib.format.read_magic(file)
    return getattr(np.lib.format, f"read_array_header_{major}_0")(file)


def array_names(path: Path, what: str) -> list[str]:
    """Return the names of the arrays in an `.npz` file; an InputError as for `read_arrays`."""
    with reading(path, what), np.load(path, allow_pickle=False) as file:
        return list(file.files)


def map_array(path: Path, what: str, name: str) -> tuple[np.ndarray, str]:
    """Return an array of an `.npz` file, read from the disk as it is used, and a fingerprint.

    Only a compressed array is read at once. The fingerprint is that of the checksum in the file.

    Raises:
        InputError: as for `read_arrays`.
    """
    with reading(path, what), zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        identity = fingerprint(info.CRC, info.file_size)
        if info.compress_type == zipfile.ZIP_STORED:
            return _map(_part(archive, info)), identity
    return read_arrays(path, what, name)[name], identity


def map_npy(part: Part) -> np.ndarray:
    """Return the array in an `.npy` file, or in a part of a file, mapped into memory.

    Raises:
        InputError: it is none, or of another size than its header claims.
    """
    with reading(part.path, "an array of numbers"):
        return _map(part)


def _map(part: Part) -> np.ndarray:
    with open(part.path, "rb") as file:
        last = file.seek(0, 2)
        file.seek(part.start)
        shape, fortran, dtype = _read_header(file)
        offset = file.tell()
    size = math.prod(shape) * dtype.itemsize
    room = (last if part.end is None else min(part.end, last)) - offset
    if dtype.hasobject or size != room:
        raise ValueError(f"it claims {shape} of {dtype} in {max(0, room):,} bytes")
    return np.memmap(part.path, dtype, "r", offset, shape, "F" if fortran else "C")


def list_zip(path: Path) -> dict[str, Part]:
    """Return where the members of a zip lie in it, by name.

    Raises:
        InputError: it cannot be read, or a member is compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError(
                    "it is compressed, so its arrays cannot be read one by one: save it by "
                    "numpy.savez, or zip -0"
                )
            return {member.filename: _part(archive, member) for member in members}
    except Exception as error:  # as in `read_arrays`
        raise InputError(f"{path} cannot be read as a zip: {reason(error)}") from None


def _part(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Part:
    """Return where a member that is not compressed lies."""
    path = str(archive.filename)
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # the sizes of name and extra field
        start = file.tell() + 4 + sum(struct.unpack("<HH", file.read(4)))
    return Part(path, start, start + member.file_size)
