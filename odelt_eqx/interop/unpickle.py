"""Pickles read as data: arrays, numbers, strings and plain containers; nothing is executed.

A pickle is a program for a small machine that may name any Python object and call it. Here every
name becomes an inert record; the few names that describe arrays become the bytes, shape and dtype
they carry. So no class or function named in the file is ever imported or called. Nor is an object
of the file printed or hashed, which takes exponential time for tuples of shared tuples.

A short pickle can also ask for much work, by copying one large object again and again. What is
copied is counted, and may be a few times as large as the file.
"""

import io
import os
import pickletools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError, reason

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
DTYPES = {name: np.dtype(name) for name in NUMBERS}
"""The element types that are read, by NumPy's short names, besides bfloat16."""


MOST_MARKS, MOST_CHARACTERS, COPIES = 1000, 200, 4
"""Bounds: unfinished containers at a time, the length of a name, and what calls and names copy,
over the size of the file."""


class Inert:
    """An object that a file names, not loaded: a record that cannot be called."""

    def __init__(self, name: str, *arguments: Any, state: Any = None):
        self.name, self.arguments, self.state = name, arguments, state

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


class DType(Inert):
    """An element type, by NumPy's short name."""

    def resolve(self) -> np.dtype:
        """Return the dtype, in the byte order of the file; only plain numbers are known."""
        code = self.arguments[0] if self.arguments else None
        if isinstance(code, Inert) and code.name == "ml_dtypes.bfloat16":
            return np.dtype(jnp.bfloat16)
        if not isinstance(code, str) or code not in DTYPES:
            raise ValueError("an array of objects is not an array of numbers")
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "|"
        if not isinstance(order, str) or order not in ("<", ">", "=", "|"):
            raise ValueError("an array without a byte order")
        return DTYPES[code].newbyteorder(order) if order in "<>" else DTYPES[code]


class Array(Inert):
    """An array, by its shape, element type and bytes."""

    def resolve(self) -> np.ndarray:
        """Return the array; its bytes must match its shape exactly."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("an array without its contents")
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, DType) or not isinstance(data, bytes):
            raise ValueError("an array of objects is not an array of numbers")
        flat = np.frombuffer(data, dtype.resolve())
        return flat.reshape(shape, order="F" if fortran else "C")


def _jax_array(name: str, *arguments: Any) -> Array:
    """Stand for `jax._src.array._reconstruct_array`, whose third argument is NumPy's state."""
    return Array(name, state=arguments[2] if len(arguments) > 2 else None)


def _scalar(name: str, *arguments: Any) -> Array:
    """Stand for NumPy's scalars: an element type and the bytes of one element."""
    return Array(name, state=(1, (), *arguments[:1], False, *arguments[1:]))


def _buffer(name: str, data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """Stand for NumPy's arrays in pickles of protocol 5."""
    return Array(name, state=(1, shape, dtype, isinstance(order, str) and order == "F", data))


def _latin(name: str, text: Any, encoding: Any) -> bytes:
    """Stand for bytes in pickles of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _mapping(name: str, *arguments: Any) -> dict:
    """Stand for mappings, which become plain dictionaries."""
    content = arguments[0] if arguments else {}
    return _entries(content.items() if isinstance(content, dict) else content)


def _entries(pairs: Iterable[Any]) -> dict[Any, Any]:
    """Return the entries that can name an array: those under short strings and integers."""
    return {
        key: value
        for key, value in pairs
        if (isinstance(key, str) and len(key) <= MOST_CHARACTERS)
        or (isinstance(key, int) and abs(key) < 2**63)
    }


Makers = Mapping[str, Callable[..., Any]]
"""What stands for a call of a name in a file: `maker(name, *arguments)`."""

MADE: Makers = {
    "numpy.dtype": DType,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "numpy.core.numeric._frombuffer": _buffer,
    "numpy._core.numeric._frombuffer": _buffer,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "jax._src.array._reconstruct_array": _jax_array,
    "jax._src.device_array.reconstruct_device_array": _jax_array,
    "_codecs.encode": _latin,
    "__builtin__.bytes": lambda _: b"",  # empty bytes of protocol 2
    "collections.OrderedDict": _mapping,
    "flax.core.frozen_dict.FrozenDict": _mapping,
}
"""Stand-ins for the few names that describe data; every other name becomes an `Inert`."""

PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
"""Instructions that push the number, string or bytes they carry."""


class _Machine:
    """The stack machine that runs pickles, without the ability to call anything named in them."""

    def __init__(self, made: Makers, load: Callable[[Any], Any] | None, size: int) -> None:
        self.made, self.load, self.left = made, load, COPIES * size + MOST_CHARACTERS
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                if len(self.marks) == MOST_MARKS:
                    raise ValueError("it is nested too deeply")
                self.marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
            case _ if name in PLAIN:
                stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(self.pop_mark()))
            case "LIST":
                stack.append(self.pop_mark())
            case "DICT":
                items = self.pop_mark()
                stack.append(_entries(zip(items[::2], items[1::2], strict=True)))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[int(argument)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[int(argument)])
            case "APPENDS" | "SETITEMS":
                self.extend(self.pop_mark())
            case "APPEND" | "SETITEM":
                count = 1 if name == "APPEND" else 2
                items = stack[-count:]
                del stack[-count:]
                self.extend(items)
            case "BINPERSID" if self.load is not None:
                stack.append(self.load(stack.pop()))
            case "GLOBAL" | "STACK_GLOBAL" | "REDUCE" | "NEWOBJ" | "NEWOBJ_EX" | "BUILD":
                self.make(name, argument)
            case _:
                raise ValueError(f"{name} is an instruction that no checkpoint needs")

    def pop_mark(self) -> list[Any]:
        """Take what lies above the last mark off the stack."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def extend(self, items: list[Any]) -> None:
        """Add items to the list or dictionary on top of the stack; an inert record takes none."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, dict):
            target.update(_entries(zip(items[::2], items[1::2], strict=True)))

    def make(self, name: str, argument: Any) -> None:
        """Record a name of the file, or its call with arguments."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(Inert(argument.replace(" ", ".")))
            return
        if name == "NEWOBJ_EX":
            stack.pop()  # keyword arguments, which no array has
        last = stack.pop()
        named = stack.pop()
        if name == "STACK_GLOBAL":
            parts = (named, last)
            if not all(isinstance(p, str) and len(p) <= MOST_CHARACTERS for p in parts):
                raise ValueError("a name that is no short string")
            self.count_copied(sum(map(len, parts)))
            stack.append(Inert(f"{named}.{last}"))
        elif name == "BUILD" and isinstance(named, dict):
            stack.append(named)  # attributes of a mapping, which hold no arrays
        elif not isinstance(named, Inert):
            raise ValueError("it calls an object without a name")
        elif name == "BUILD":
            named.state = last
            stack.append(named)
        elif not isinstance(last, tuple):
            raise ValueError("it calls an object with arguments that are no tuple")
        else:
            copied = [a for a in (last, *last) if isinstance(a, str | tuple | list | dict)]
            self.count_copied(sum(map(len, copied)))
            stack.append(self.made.get(named.name, Inert)(named.name, *last))

    def count_copied(self, count: int) -> None:
        """Count what is copied, and raise a ValueError if it is far more than the file holds."""
        self.left -= count
        if self.left < 0:
            raise ValueError("it copies its objects again and again")


class _Bounded:
    """A file that refuses to read, or allocate, more than it holds."""

    def __init__(self, file: BinaryIO | io.BytesIO, size: int):
        self._file, self._size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._size - self._file.tell():
            raise EOFError("it ends too early")
        return self._file.read(count)


def unpickle(path: Path) -> Any:
    """Return the content of a pickle, with NumPy arrays for arrays and `Inert` for other objects.

    Raises:
        InputError: the file is missing, larger than the memory, or damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    size = memory = path.stat().st_size
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise InputError(
            f"{path} has {size / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} GiB of memory"
        )
    try:
        with path.open("rb") as file:
            return run_pickle(file, size)
    except Exception as error:  # damage can break any step
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> InputError:
    """Return the error that says why a file cannot be read."""
    return InputError(f"{path} is damaged or not a checkpoint: {reason(error)}")


def run_pickle(
    file: BinaryIO | io.BytesIO,
    size: int,
    made: Makers = MADE,
    load: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the content of the pickle that starts where `file` stands, and leave it at its end.

    Args:
        file: an open file of `size` bytes.
        made: what stands for calls of known names.
        load: maps what names an object outside the pickle to what stands for it; None: there are
            no such objects.

    Raises:
        Exception: of any kind, if the pickle is damaged.
    """
    machine, bounded = _Machine(made, load, size), _Bounded(file, size)
    for instruction, argument, _ in pickletools.genops(bounded):  # pyright: ignore[reportArgumentType]
        machine.step(instruction.name, argument)
    return _resolve(machine.stack.pop(), {})


def _resolve(value: Any, known: dict[int, Any], depth: int = 0) -> Any:
    """Return plain containers with arrays in them; shared objects are resolved once."""
    if depth > 50:
        raise ValueError("it is nested too deeply")
    if id(value) not in known:
        if isinstance(value, Array):
            known[id(value)] = value.resolve()
        elif isinstance(value, dict):
            known[id(value)] = {k: _resolve(v, known, depth + 1) for k, v in value.items()}
        elif isinstance(value, list | tuple):
            known[id(value)] = [_resolve(item, known, depth + 1) for item in value]
        else:
            return value
    return known[id(value)]
