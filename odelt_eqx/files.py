"""Files written whole or not at all, and read without trusting them."""

import errno
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odelt_eqx.errors import InputError, reason
from odelt_eqx.parallel import is_main_process

WRITE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EEXIST),
}

UNPACKED, RATIO = 2**28, 100
"""A compressed file may unpack to so many bytes, or to so many times its own size."""


def temporary_path(path: Path) -> Path:
    """Return the path in the same folder that `atomic_write` writes to first."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path` and rename it to `path` on success.

    In a distributed run only the file of process 0 is kept. An OSError while it is written names
    the file.
    """
    temporary = temporary_path(path)
    if not is_main_process():
        temporary = temporary.with_name(f"{temporary.stem}-{jax.process_index()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if is_main_process():
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers must be finite."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an `.npz` file atomically."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_json(path: Path, what: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        what: what it should be, for the message: "an index of shards".

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines; damaged lines are skipped, no file has none."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # half a line: it is being written
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


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
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                if name not in file.files:
                    raise KeyError(f"it has no array {name!r}")
            wanted = [name for name in file.files if name in {*names, *optional}]
            size = sum(file.zip.getinfo(f"{name}.npy").file_size for name in wanted)
            if size > UNPACKED and size > RATIO * path.stat().st_size:
                gib = f"{size / 2**30:.1f} GiB"
                raise ValueError(f"it unpacks to {gib}; save it uncompressed if that is right")
            return {name: file[name] for name in wanted}
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


def array_names(path: Path, what: str) -> list[str]:
    """Return the names of the arrays in an `.npz` file; an InputError as for `read_arrays`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except Exception as error:  # as in `read_arrays`
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


def map_array(path: Path, what: str, name: str) -> tuple[np.ndarray, str]:
    """Return an array of an `.npz` file, read from the disk as it is used, and a fingerprint.

    Only a compressed array is read at once. The fingerprint is that of the checksum in the file.

    Raises:
        InputError: as for `read_arrays`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            identity = fingerprint(info.CRC, info.file_size)
            if info.compress_type != zipfile.ZIP_STORED:
                return read_arrays(path, what, name)[name], identity
            with archive.open(info) as member, path.open("rb") as file:
                file.seek(info.header_offset + 26)
                sizes = np.frombuffer(file.read(4), "<u2")  # of the name and the extra field
                start = info.header_offset + 30 + int(sizes.sum())
                version = np.lib.format.read_magic(member)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, fortran, dtype = read_header(member)
                header = member.tell()
        if dtype.hasobject or header + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{name} does not hold the array that it says")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", start + header, shape, order), identity
    except InputError:
        raise
    except Exception as error:  # as in `read_arrays`
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


@contextmanager
def write_errors(folder: Path, hint: str = "") -> Iterator[None]:
    """Turn the refusal of a file system to write into an InputError of one line.

    Args:
        folder: what is written.
        hint: what the user can do, appended to the line.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        hint = f"; {hint}" if hint else ""
        raise InputError(f"{folder} cannot be written: {error}{hint}") from error


def fingerprint(*values: Any) -> str:
    """Return 16 hexadecimal digits that identify the content of values.

    Args:
        *values: bytes, strings, numbers, dataclasses, arrays, and pytrees of these.
    """
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(values, is_leaf=lambda x: x is None):
        if isinstance(leaf, np.ndarray | np.generic | jax.Array):
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        elif isinstance(leaf, bytes):
            digest.update(leaf)
        else:
            digest.update(repr(leaf).encode(errors="surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()
