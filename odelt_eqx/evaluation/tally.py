"""What is kept of pictures that went by: never the pictures, of many features their moments."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from odelt_eqx.evaluation.moments import Moments

GROUPS = 10
"""Disjoint groups of the pictures, drawn at random; an error is that between them."""

SUBSET = 5000
"""Pictures whose features are kept one by one, for the kernel distance and for coverage."""


@dataclasses.dataclass
class Tally:
    """A running account of a set of pictures whose size is known beforehand.

    Args:
        total: how many pictures there are to be.
        groups: the moments of each group's features so far; none before the first picture.
        rows: the features of the first `SUBSET` pictures.
        hits: how many showed the class asked for; None where nobody looks.
        count: pictures so far.
    """

    total: int
    groups: list[Moments]
    rows: Float[np.ndarray, "kept features"]
    hits: int | None
    count: int

    @classmethod
    def empty(cls, total: int) -> "Tally":
        """Return the account of no pictures yet."""
        return cls(total, [], np.zeros((0, 0), np.float32), None, 0)

    def add(self, rows: Float[np.ndarray, "batch features"], hits: int | None) -> None:
        """Count pictures.

        Args:
            rows: their features.
            hits: how many show the class asked for.
        """
        if not self.groups:
            size = min(GROUPS, self.total // 2)
            self.groups = [Moments.of(rows[:0]) for _ in range(max(size, 1))]
            self.rows = rows[:0]
        # a picture's group depends on its place alone, not on the batches
        order = np.random.default_rng(0).permutation(self.total) % len(self.groups)
        own = order[self.count : self.count + len(rows)]
        self.groups = [group.add(rows[own == g]) for g, group in enumerate(self.groups)]
        self.rows = np.concatenate([self.rows, rows[: max(0, SUBSET - len(self.rows))]])
        self.hits = self.hits if hits is None else (self.hits or 0) + hits
        self.count += len(rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the account as arrays by name."""
        return {
            "counts": np.array([group.count for group in self.groups]),
            "means": np.array([group.mean for group in self.groups]),
            "scatters": np.array([group.scatter for group in self.groups]),
            "rows": self.rows,
            "hits": np.array(-1 if self.hits is None else self.hits),
            "numbers": np.array([self.total, self.count]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Tally":
        """Return the account whose `arrays` these are."""
        parts = zip(arrays["counts"], arrays["means"], arrays["scatters"], strict=True)
        total, count = map(int, arrays["numbers"])
        hits = int(arrays["hits"])
        groups = [Moments(int(n), mean, scatter) for n, mean, scatter in parts]
        return cls(total, groups, arrays["rows"], None if hits < 0 else hits, count)
