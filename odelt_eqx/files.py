"""Files written whole or not at all, and read without trusting them."""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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

MAX_TEXT = 2**28
"""Bytes of a text file, or of a line of a file of JSON lines, at most."""
MOST_WAITS = 100
"""Times that a file is locked, at most: each time, another process may have renamed it."""


def temporary_path(path: Path) -> Path:
    """Return the path in the same folder that `atomic_write` writes to first."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def atomic_write(path: Path, wait: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path` and rename it to `path` on success.

    In a distributed run only the file of process 0 is kept. An OSError while it is written names
    the file. Another process that writes it now is waited for if `wait`.

    Raises:
        InputError: another process writes it now.
    """
    temporary = temporary_path(path)
    if not is_main_process():
        temporary = temporary.with_name(f"{temporary.stem}-{jax.process_index()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with claim(temporary, wait):
        try:
            yield temporary
            if is_main_process():
                os.replace(temporary, path)
            else:
                temporary.unlink(missing_ok=True)
        except BaseException as error:  # after success, another process may have made it again
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder` and rename it to `folder` on success.

    Raises:
        InputError: another process writes it now.
    """
    temporary = temporary_path(folder)
    temporary.mkdir(parents=True, exist_ok=True)
    with claim(temporary):
        try:
            for path in temporary.iterdir():  # what a kill left
                remove(path)
            yield temporary
            temporary.rename(folder)
        except BaseException:  # after success, another process may have made it again
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def claim(temporary: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing to a temporary file, which is made, or folder meanwhile.

    Two commands that write one file would each write into what becomes the file of the other. Where
    the system cannot lock, nothing is held.

    Raises:
        InputError: another process writes to it, and is not to be waited for.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    mode = os.O_RDONLY if temporary.is_dir() else os.O_RDWR | os.O_CREAT
    with ExitStack() as stack:
        for _ in range(MOST_WAITS):
            descriptor = os.open(temporary, mode, 0o666)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise InputError(
                    f"another process is writing {temporary}: wait for it, or write elsewhere"
                ) from None
            except OSError:
                break
            with suppress(FileNotFoundError):
                if os.path.samefile(temporary, descriptor):
                    break
            stack.close()  # another process has renamed it
        yield


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; of several processes, the last one's is kept."""
    with atomic_write(path, wait=True) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers must be finite."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


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


@contextmanager
def reading(path: object, what: str) -> Iterator[None]:
    """Turn any error of reading a file into an InputError of one line.

    Args:
        path: the file.
        what: what it should be: "a list of class names".
    """
    try:
        yield
    except Exception as error:  # a damaged file raises errors of many kinds
        raise InputError(f"{path} is not {what}: {reason(error)}") from None


def read_text(path: Path, what: str) -> str:
    """Return the content of a text file, UTF-8; `what` it should be is for the message.

    Raises:
        InputError: it is missing, damaged or too large for such a file.
    """
    with reading(path, what):
        return _read_bytes(path).decode()


def read_json(path: Path, what: str) -> Any:
    """Return the content of a JSON file; raises as `read_text` does."""
    with reading(path, what):
        return parse_json(_read_bytes(path))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects in a file of JSON lines, of any length; no file has none.

    A damaged line is skipped, and a warning counts them: all but the last one if it has no end,
    for then it is being written.

    Raises:
        InputError: the file cannot be read.
    """
    if not path.is_file():
        return
    count = damaged = 0
    with reading(path, "a file of JSON lines"), path.open("rb") as file:
        for line in iter(lambda: file.readline(MAX_TEXT), b""):
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            elif line.endswith(b"\n") and line.strip():
                damaged += 1
            count += line.endswith(b"\n")
    if damaged:
        warnings.warn(f"{path}: damaged lines are skipped, {damaged} of {count}", stacklevel=2)


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


def check_packing(member: zipfile.ZipInfo) -> None:
    """Raise a ValueError unless a member of a zip is stored or deflated.

    Python unpacks those alone in steps; any other may fill the memory whatever size it claims.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{member.filename} is compressed by another method than deflate; pack it again by "
            "deflate, which zip -r does, or without compression"
        )


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return the content of a member of a zip, no more of it than the size it claims.

    Raises:
        Exception: of any kind, if the archive is damaged.
    """
    check_packing(member)
    with archive.open(member) as file:
        return file.read(member.file_size)


def _read_bytes(path: Path) -> bytes:
    """Return the content of a small file; a ValueError if it is not small."""
    with path.open("rb") as file:
        content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT:,} bytes")
    return content


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


def check_writable(path: Path) -> None:
    """Raise an InputError unless a file can be written, before the work whose result it holds."""
    with write_errors(path):
        if path.name in ("", "..") or path.is_dir():
            raise InputError(f"{path} is a folder; give the path of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="."):
            pass


@contextmanager
def lock(file: Path, doing: str, otherwise: str) -> Iterator[None]:
    """Hold a lock, a file in the folder that it is of, which is made if need be.

    The operating system releases it when the process ends, however it ends. Where it cannot lock,
    as on Windows and on some network file systems, a note says so.

    Args:
        file: the lock.
        doing: what is done in the folder meanwhile: "training".
        otherwise: what a user can do besides waiting.

    Raises:
        InputError: another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        try:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is {doing} in {file.parent}; wait for it, {otherwise}"
            ) from None
        except (ImportError, OSError) as error:
            unlocked = f"{file.parent} cannot be locked here ({error})"
            print(f"note: {unlocked}: {doing} there is for one process only", file=sys.stderr)
        yield


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
