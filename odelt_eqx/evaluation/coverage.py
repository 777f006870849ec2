"""How much of one set lies where another does: precision and recall."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.moments import Rows

CHUNK = 1024
"""Rows whose distances to a whole set are in memory at a time."""

Set = Float[np.ndarray, "_ _"]


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Two shares in [0, 1].

    Args:
        precision: of the samples, those that look like real ones.
        recall: of the real ones, those that look like a sample.
    """

    precision: float
    recall: float


def precision_recall(
    samples: Rows,
    real: Rows,
    *,
    neighbours: int = 3,
) -> PrecisionRecall:
    """Return improved precision and recall.

    A set is taken to fill the balls around its members that reach to their `neighbours`-th nearest
    other member. Precision is the share of samples inside the balls of the real ones, recall the
    share of real ones inside the balls of the samples. Both grow with the number of members, so
    compare figures of equal numbers only. Memory is bounded: distances are taken chunk by chunk.

    Source: arXiv 1904.06991, eq. 1 and 2; there with 50,000 of each and the third neighbour.

    Args:
        samples: one feature vector a row.
        real: the same for the real ones.
        neighbours: which neighbour a ball reaches to, not counting the member itself.

    Raises:
        InputError: the sets are of different widths, or have no more members than `neighbours`.
    """
    if samples.shape[1] != real.shape[1]:
        raise InputError(
            f"{samples.shape[1]} and {real.shape[1]} features are no features of one kind: "
            "compare like to like"
        )
    if not 1 <= neighbours < min(len(samples), len(real)):
        raise InputError(
            f"neighbours must be at least 1 and less than the members of both sets, "
            f"{len(samples)} and {len(real)}; got {neighbours}"
        )
    generated, true = np.asarray(samples, np.float64), np.asarray(real, np.float64)
    centre = true.mean(0)  # differences of large squares lose digits
    generated, true = generated - centre, true - centre
    return PrecisionRecall(
        precision=float(_inside(generated, true, neighbours).mean()),
        recall=float(_inside(true, generated, neighbours).mean()),
    )


def _inside(points: Set, members: Set, neighbours: int) -> Bool[np.ndarray, " points"]:
    """Say of each point whether it lies in the ball of a member, its edge included."""
    reach = np.concatenate(
        [
            # the member itself is the nearest, at distance 0
            np.partition(distances, neighbours, axis=1)[:, neighbours]
            for distances in _squared_distances(members, members)
        ]
    )
    return np.concatenate(
        [(distances <= reach).any(axis=1) for distances in _squared_distances(points, members)]
    )


def _squared_distances(a: Set, b: Set) -> Iterator[Set]:
    """Yield the squared distances of each row of `a` to those of `b`, chunk by chunk."""
    squares = np.square(b).sum(1)
    for start in range(0, len(a), CHUNK):
        rows = a[start : start + CHUNK]
        squared = np.square(rows).sum(1)[:, None] + squares - 2 * rows @ b.T
        yield np.maximum(squared, 0)
