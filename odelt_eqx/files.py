"""Files written whole or not at all, and read without trusting them."""

import errno
import hashlib
import json
import math
import os
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import jax
import numpy as np

from odelt_eqx.errors import InputError, reason
from odelt_eqx.parallel import is_main_process

WRITE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EEXIST),
}

UNPACKED, RATIO = 2**26, 100
"""What is compressed may unpack to so many bytes, or to so many times its own size."""
MAX_TEXT = 2**28
"""Bytes of a text file, at most."""


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


def member_path(folder: Path, *names: str) -> Path:
    """Return the path of a file in a folder, where another file has its name.

    Args:
        folder: the folder.
        *names: of subfolders, and at last that of the file.

    Raises:
        InputError: a name, or a link that stands there, could lead out of the folder.
    """
    path = folder.joinpath(*names)
    inside = all(map(is_file_name, names)) and path.resolve().is_relative_to(folder.resolve())
    if not inside:
        raise InputError(f"{'/'.join(names)!r} is not the name of a file in {folder}")
    return path


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file in any folder and on any system, not a path."""
    bare = PureWindowsPath(name).name == name and name not in ("", ".", "..")
    return bare and len(name) <= 200 and name.isprintable() and ":" not in name


def read_text(path: Path, what: str) -> str:
    """Return the content of a text file, UTF-8.

    Args:
        path: the file.
        what: what it should be, for the message: "a list of class names".

    Raises:
        InputError: it is missing, damaged or too large for such a file.
    """
    try:
        return _read_bytes(path).decode()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


def read_json(path: Path, what: str) -> Any:
    """Return the content of a JSON file; raises as `read_text` does."""
    try:
        return parse_json(_read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines; no file has none.

    A damaged line is skipped, and a warning counts them: all but the last one if it has no end,
    for then it is being written.

    Raises:
        InputError: the file cannot be read.
    """
    if not path.is_file():
        return []
    try:
        *lines, last = _read_bytes(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a file of JSON lines: {reason(error)}") from None
    rows, damaged = [], 0
    for line in (*lines, last):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line is not last and line.strip():
            damaged += 1
    if damaged:
        warnings.warn(f"{path}: damaged lines are skipped, {damaged} of {len(lines)}", stacklevel=2)
    return rows


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text, whose numbers must be finite.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=_parse_float, parse_float=_parse_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is not finite: {text[:20]}")
    return value


def _read_bytes(path: Path) -> bytes:
    """Return the content of a small file; a ValueError if it is not small."""
    with path.open("rb") as file:
        content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT:,} bytes")
    return content


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
                _check_header(file.zip, member)
            return {name: file[name] for name in wanted}
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


def check_unpacked(size: int, packed: int) -> None:
    """Raise a ValueError if `packed` bytes would unpack to far more than their own size."""
    if size > UNPACKED and size > RATIO * packed:
        gib = f"{size / 2**30:.1f} GiB"
        raise ValueError(f"it unpacks to {gib}; save it uncompressed if that is right")


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise a ValueError unless an array has the size that its header claims."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, _, dtype = read(file)
        claimed = file.tell() + math.prod(shape) * dtype.itemsize
    odd = min(shape, default=0) < 0 or max(shape, default=0) > claimed or not dtype.itemsize
    if not dtype.hasobject and (odd or claimed != member.file_size):
        raise ValueError(f"{member.filename} claims the shape {shape}, which is not its size")


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
