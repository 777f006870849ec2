"""Networks filled with arrays that are known by name, and what to say where they do not fit."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import safetensors

from odelt_eqx.errors import InputError


def listed(names: list[str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def check_names(wanted: Collection[str], found: Collection[str], complaint: str) -> None:
    """Raise an InputError that begins with `complaint` if names are missing or left over."""
    wanted, found = set(wanted), set(found)
    problems = [
        f"{what}: {listed(sorted(names))}"
        for what, names in (("missing", wanted - found), ("left over", found - wanted))
        if names
    ]
    if problems:
        raise InputError(f"{complaint}; {'; '.join(problems)}")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a `.safetensors` file by name.

    Raises:
        InputError: there is no such file, or it is of another format or damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no .safetensors file: {problem}") from None
