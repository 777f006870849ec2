"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from odelt_eqx.hosts import is_first


def beside(path: Path) -> Path:
    """Return where `replacing` writes what is to become `path`."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` if nothing went wrong.

    Of several processes that work as one, only the first one's file is kept.
    """
    partial = beside(path)
    if not is_first():
        partial = partial.with_name(f"{partial.stem}-{jax.process_index()}{partial.suffix}")
    try:
        yield partial
        if is_first():
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
