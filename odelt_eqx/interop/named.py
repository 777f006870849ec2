"""Arrays by name: those of trees and files, and comparing names."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
import safetensors
import safetensors.numpy

from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import atomic_write, write_errors

Module = TypeVar("Module", bound=eqx.Module)

MOST_NAMES = 100_000
"""Arrays and mappings of a checkpoint, at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """An array in an open file.

    Args:
        shape: its shape.
        read: returns it, or raises an InputError if it is damaged.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def listed(names: list[str], most: int = 8) -> str:
    """Return the first names, and the number of the others."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def check_names(wanted: Collection[str], found: Collection[str], complaint: str) -> None:
    """Raise an InputError that starts with `complaint` if names are missing or left over."""
    missing, left_over = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    kinds = {"missing": missing, "left over": left_over}
    problems = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise InputError(f"{complaint}; {'; '.join(problems)}")


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, whose names are joined by dots."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def check_finite(module: Module, source: object) -> Module:
    """Return a network, or raise an InputError if a weight of it is not finite."""
    for name, leaf in leaves_by_name(module).items():
        if eqx.is_inexact_array(leaf) and not np.isfinite(np.asarray(leaf)).all():
            raise InputError(f"{source} has weights that are not finite: {name}")
    return module


def flatten(tree: Mapping[str, Any], strict: bool = True) -> dict[str, np.ndarray]:
    """Return the arrays of nested mappings by slashed name.

    Args:
        tree: the mappings; one that is shared is there once for each of its names.
        strict: raise an InputError for a leaf that is not an array, instead of leaving it out.
    """
    flat: dict[str, np.ndarray] = {}
    count, left = 0, [("", tree)]
    while left:
        prefix, mapping = left.pop()
        count += len(mapping)
        if count > MOST_NAMES:  # a few mappings that share each other have any number of names
            raise InputError(f"there are more than {MOST_NAMES:,} names in nested mappings")
        for name, value in mapping.items():
            if isinstance(value, Mapping):
                left.append((f"{prefix}{name}/", value))
            elif isinstance(value, np.ndarray):
                flat[f"{prefix}{name}"] = value
            elif strict:
                raise InputError(f"{prefix}{name} is not an array but a {type(value).__name__}")
    return flat


def read_tensor(file: Any, name: str) -> np.ndarray:
    """Return an array of an open `.safetensors` file.

    Raises:
        InputError: NumPy has no type for its elements.
        Exception: of any kind, if it is damaged.
    """
    try:
        return file.get_tensor(name)
    except AttributeError:
        raise unknown_elements(file.get_slice(name), name) from None


def unknown_elements(found: Any, name: str) -> InputError:
    """Return the error of an array of a `.safetensors` file, a slice, whose type NumPy lacks."""
    return InputError(
        f"elements of type {found.get_dtype()} are not read ({name}): convert them to float16 or "
        "float32"
    )


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[dict[str, Stored]]:
    """Yield the arrays of a `.safetensors` file by name, to be read while it is open.

    Raises:
        InputError: the file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")

    @contextlib.contextmanager
    def in_one_line() -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a .safetensors file: {reason(error)}") from None

    def read(name: str) -> np.ndarray:
        with in_one_line():
            return read_tensor(file, name)

    with in_one_line():
        file: Any = safetensors.safe_open(path, framework="numpy")
    with file:
        with in_one_line():
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        yield {name: Stored(tuple(shape), partial(read, name)) for name, shape in shapes.items()}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a `.safetensors` file by name.

    Raises:
        InputError: the file is missing, damaged or of another format.
    """
    with open_safetensors(path) as arrays:
        return {name: array.read() for name, array in arrays.items()}


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a `.safetensors` file atomically.

    Raises:
        InputError: it cannot be written.
    """
    with write_errors(path), atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors writes for this user alone
        try:
            safetensors.numpy.save_file(arrays, temporary, metadata)
            temporary.chmod(mode)
        except safetensors.SafetensorError as error:  # as which it reports the system's, too
            raise InputError(f"{path} cannot be written: {reason(error)}") from None
