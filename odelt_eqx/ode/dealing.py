"""A batch whose examples run at depths of their own, dealt out so that every part is alike."""

from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int

Tree = TypeVar("Tree")


def deal(
    depth: Int[np.ndarray, " batch"], parts: int
) -> tuple[Int[np.ndarray, "parts size"], Bool[np.ndarray, "parts size"]]:
    """Return which examples go into each part, and which of them count.

    Every part has the same depths in the same places, the deepest first, so that one program that
    knows them serves all, on one device after the other or on all at once. Where a depth's examples
    do not come out even, some stand in a second time and do not count: fewer than there are parts.
    A batch that was dealt out is left as it is.

    Args:
        depth: how deep each example runs.
        parts: how many parts.
    """
    dealt, counts = [], []
    for value in np.unique(depth)[::-1]:
        members = np.flatnonzero(depth == value)
        size = len(members) + -len(members) % parts
        dealt.append(np.resize(members, size).reshape(parts, -1))
        counts.append((np.arange(size) < len(members)).reshape(parts, -1))
    return np.concatenate(dealt, axis=1), np.concatenate(counts, axis=1)


def places(
    dealt: Int[np.ndarray, "parts size"], counts: Bool[np.ndarray, "parts size"]
) -> Int[np.ndarray, " batch"]:
    """Return where each example is among the rows that `deal` chose."""
    rows = np.flatnonzero(counts)
    back = np.empty(len(rows), int)
    back[dealt.ravel()[rows]] = rows
    return back


def take(tree: Tree, rows: Int[np.ndarray, "..."]) -> Tree:
    """Return these rows of every array, in one batch; nothing is moved if they are all in order."""
    rows = rows.ravel()
    in_order = np.array_equal(rows, np.arange(len(rows)))
    return tree if in_order else jax.tree.map(lambda leaf: leaf[rows], tree)
