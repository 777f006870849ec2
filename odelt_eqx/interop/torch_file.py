"""PyTorch's checkpoints read as data, without PyTorch: the zip format and the one before it.

Both hold a pickle, which is run by the machine of `unpickle` and so executes nothing, and the
elements of the tensors outside it. A tensor is read when it is asked for, so that a checkpoint with
the state of its optimiser takes no more memory than the weights that are wanted.
"""

import contextlib
import dataclasses
import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError
from odelt_eqx.files import read_member
from odelt_eqx.interop.named import Stored
from odelt_eqx.interop.unpickle import MADE, Inert, Makers, damaged, run_pickle

MAGIC = 0x1950A86A20F9469CFC6C
"""The number that a file of the older format starts with, as a pickle of its own."""

MOST_AXES = 64
"""Axes of an array of NumPy, at most."""
MOST_PARTS = 6
"""Parts of the name of an object outside the pickle, at most."""
ELEMENTS = {
    "DoubleStorage": np.dtype("f8"),
    "FloatStorage": np.dtype("f4"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
"""Element types by PyTorch's names of storages."""


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """The elements that one tensor or several tensors view.

    Args:
        dtype: their type, in the byte order of the file.
        count: how many there are.
        read: returns their bytes, checked as far as the format allows.
    """

    dtype: np.dtype
    count: int
    read: Callable[[], bytes]


def _tensor(name: str, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Stored:
    """Stand for a tensor, a view of a storage; `rest` is about gradients."""
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError("a tensor without its contents")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise ValueError("a tensor whose shape or strides are out of range")
    size, dtype = math.prod(shape), storage.dtype
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if size and last >= storage.count:
        raise ValueError(f"a tensor of shape {tuple(shape)} in {storage.count} elements")

    def read() -> np.ndarray:
        if not size:
            return np.zeros(shape, dtype.newbyteorder("="))
        flat = np.frombuffer(storage.read(), dtype)[offset:]
        steps = [stride * dtype.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        return view if dtype.isnative else view.astype(dtype.newbyteorder("="))

    return Stored(tuple(shape), read)


TENSORS: Makers = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda _, tensor, *rest: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda _, tensor, *rest: tensor,
}
"""Stand-ins for the names that describe tensors of PyTorch's own classes."""


def _from_type(name: str, function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
    """Stand for tensors of a class of their own: the tensor is what counts."""
    if not isinstance(arguments, tuple):
        raise ValueError("it calls an object with arguments that are no tuple")
    return TENSORS[function.name](function.name, *arguments)


TORCH: Makers = {**TENSORS, "torch._tensor._rebuild_from_type_v2": _from_type}
"""Stand-ins for the names that describe tensors."""


@contextlib.contextmanager
def open_torch(path: str | Path) -> Iterator[Any]:
    """Yield the content of a checkpoint, whose tensors can be read while it is open.

    Containers are plain ones, a tensor is `Stored`, and every other object is an `Inert` record: no
    class or function that the file names is imported or called.

    Raises:
        InputError: the file is missing or damaged, or is in neither of PyTorch's formats.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with path.open("rb") as file:
        try:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            content = read(file, path)
        except Exception as error:  # damage can break any step
            raise damaged(path, error) from None
        yield content


def _read_zip(file: BinaryIO, path: Path) -> Any:
    """Return the content of a zip archive: `data.pkl`, and a member of `data` for each storage."""
    archive, size = zipfile.ZipFile(file), path.stat().st_size
    pickles = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive without the data.pkl of PyTorch")
    root = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise ValueError(f"{name} is compressed, or larger than the file")
        return read_member(archive, info)  # which compares its checksum

    order = "<"
    if f"{root}byteorder" in archive.namelist():
        order = {b"little": "<", b"big": ">"}[read(f"{root}byteorder")]

    @functools.lru_cache(maxsize=1)  # neighbours may view one storage
    def elements(key: str, length: int) -> bytes:
        try:
            content = read(f"{root}data/{key}")
            if len(content) != length:
                raise ValueError(f"{key} has {len(content)} bytes, not {length}")
        except Exception as error:  # damage can break any step
            raise damaged(path, error) from None
        return content

    def make(dtype: np.dtype, key: str, count: int) -> Storage:
        return Storage(dtype, count, functools.partial(elements, key, count * dtype.itemsize))

    load, content = _loader(make, order), read(pickles[0])
    return run_pickle(io.BytesIO(content), len(content), {**MADE, **TORCH}, load)


def _read_legacy(file: BinaryIO, path: Path) -> Any:
    """Return the content of the older format: five pickles, then the storages one after another.

    The elements have no checksum.
    """
    size = path.stat().st_size
    file.seek(0)
    if run_pickle(file, size) != MAGIC:
        raise ValueError("it is neither a zip archive nor an older file of PyTorch")
    run_pickle(file, size)  # the version of the protocol
    system = run_pickle(file, size)
    order = "<" if system.get("little_endian", True) else ">"
    storages: dict[str, Storage] = {}
    starts: dict[str, int] = {}

    def elements(key: str) -> bytes:
        storage = storages[key]
        file.seek(starts[key])
        return file.read(storage.count * storage.dtype.itemsize)

    def make(dtype: np.dtype, key: str, count: int) -> Storage:
        return storages.setdefault(key, Storage(dtype, count, functools.partial(elements, key)))

    content = run_pickle(file, size, {**MADE, **TORCH}, _loader(make, order))
    for key in run_pickle(file, size):
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little" if order == "<" else "big")
        starts[key] = file.tell()
        end = starts[key] + count * storage.dtype.itemsize
        if count != storage.count or end > size:
            raise ValueError(f"storage {key} has {count} elements, not {storage.count}")
        file.seek(end)
    if missing := set(storages) - set(starts):
        raise ValueError(f"it ends before storage {min(missing)}")
    return content


def _loader(make: Callable[[np.dtype, str, int], Storage], order: str) -> Callable[[Any], Any]:
    """Return what stands for an object that a pickle names: a storage, or a class as its name."""

    def load(named: Any) -> Any:
        if not isinstance(named, tuple) or len(named) > MOST_PARTS:
            raise ValueError("an object outside the pickle without a name")
        kind, what, *rest = named
        if kind == "module":
            return what
        key, _, count, *view = rest
        known = isinstance(what, Inert) and isinstance(key, str)
        if kind != "storage" or not known or any(view) or type(count) is not int or count < 0:
            raise ValueError("a storage without type, name or size")
        name = what.name.split(".")[-1]
        if name not in ELEMENTS:
            raise ValueError(f"elements of a {name} are not read")
        return make(ELEMENTS[name].newbyteorder(order), key, count)

    return load
