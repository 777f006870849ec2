"""What orbax is given and what it answers: trees as tables of arrays, failures as one line."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

Tree = TypeVar("Tree")


def by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their path, its names joined by dots."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def from_paths(template: Tree, leaves: dict[str, Any]) -> Tree:
    """Return the tree that `by_path` took apart."""
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[p] for p in by_path(template)])


def restore_args(tree: Any) -> ocp.args.StandardRestore:
    """Return how a tree of this form is read: where its arrays are, mere shapes on one device."""
    here = SingleDeviceSharding(jax.local_devices()[0])

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        where = leaf.sharding if isinstance(leaf, jax.Array) else here
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return ocp.args.StandardRestore(by_path(jax.tree.map(shape, tree)))


def reason(error: Exception) -> str:
    """Return why reading or writing failed: what the system says, or else the first line."""
    if found := re.search(r"os_error_code='(\d+)'", str(error)):  # so tensorstore passes it on
        return os.strerror(int(found[1]))
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what else a failed write leaves behind from the terminal: it is raised as well.

    Orbax logs a failure several times, with tracebacks, and abandons other writes of the same
    checkpoint, which then complain to a closed event loop.
    """
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook

    def without_abandoned(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    for logger in loggers:
        logger.addFilter(_is_news)
    sys.unraisablehook = without_abandoned
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
            yield
    finally:
        sys.unraisablehook = hook
        for logger in loggers:
            logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is neither of orbax nor of what it abandoned."""
    return not ("orbax" in record.pathname or "never retrieved" in record.getMessage())
