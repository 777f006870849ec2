"""Points in the plane on which flows are usually tried first."""

import dataclasses
import math
from typing import Literal

import numpy as np

from odelt_eqx.data.labels import UNLABELLED
from odelt_eqx.data.source import ArraySource, DataSet, Split
from odelt_eqx.errors import check_range
from odelt_eqx.serialize import set_declared

NOISE = 0.05
"""Standard deviation of the noise added to the moons."""
MOONS_MEAN = np.array([1 / 2, 1 / 4])
MOONS_VARIANCE = np.array([3 / 4, 9 / 16 - 1 / math.pi]) + NOISE**2
CELLS = 4
SIDE = math.sqrt(12) / CELLS
"""Side of a cell: a board of width sqrt(12) has unit variance along both axes."""


@dataclasses.dataclass(frozen=True)
class Toy(DataSet):
    """Points in the plane with zero mean and unit variance along both axes.

    "moons" are scikit-learn's two interleaved half circles, with noise 0.05; each is a class.
    "checkerboard" is uniform on 8 of the 16 cells of a 4 x 4 board, whose density there is 1/6.

    Args:
        name: the distribution.
        count: number of points in both splits; one in ten is held out.
        seed: seed of the draws.
    """

    name: Literal["moons", "checkerboard"] = "moons"
    count: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "count", least=20)
        check_range(self, "seed", least=0)

    def _open(self, split: Split) -> ArraySource:
        held_out = self.count // 10
        count = held_out if split == "held-out" else self.count - held_out
        rng = np.random.default_rng((self.seed, split == "held-out"))
        if self.name == "moons":
            return _moons(count, rng)
        return _checkerboard(count, rng)


def _moons(count: int, rng: np.random.Generator) -> ArraySource:
    from sklearn.datasets import make_moons

    points, labels = make_moons(count, noise=NOISE, random_state=int(rng.integers(2**31)))
    x = ((points - MOONS_MEAN) / np.sqrt(MOONS_VARIANCE)).astype(np.float32)
    return ArraySource(x, np.asarray(labels, np.int32), None, ("upper", "lower"))


def _checkerboard(count: int, rng: np.random.Generator) -> ArraySource:
    column = rng.integers(CELLS, size=count)
    row = 2 * rng.integers(CELLS // 2, size=count) + column % 2
    x = SIDE * (np.stack([column, row], axis=1) + rng.random((count, 2)) - CELLS / 2)
    return ArraySource(x.astype(np.float32), np.zeros(count, np.int32), None, UNLABELLED)
