"""The best measured setting within a budget."""

import dataclasses
from pathlib import Path

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.grid import GRID, SEARCH, Grid, Row, load_grid
from odelt_eqx.sampling import SampleConfig


def load_best_grid(folder: Path) -> Grid:
    """Return the grid of a run that was searched or evaluated, see `load_grid`.

    Of two, it is that of the newer checkpoint; of the same one, that which was searched.
    """
    searched = folder / SEARCH
    if not (searched / GRID).is_file():
        return load_grid(folder)
    grids = [load_grid(each) for each in (searched, folder) if (each / GRID).is_file()]
    return max(grids, key=lambda grid: grid.step)


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A row of a grid to sample with.

    Example:
        >>> best = odelt.recommend("runs/digits", milliseconds=1000)
        >>> odelt.sample(model, noise, labels, best.config).shape
        (10, 8, 8, 1)
    """

    row: Row
    grid: Grid

    @property
    def config(self) -> SampleConfig:
        """How to run the network, for `odelt.sample`."""
        return self.row.config

    def __str__(self) -> str:
        row = self.row
        return (
            f"depth {row.depth}, {row.solver}, {row.accepted:g} time steps, guidance "
            f"{row.guidance}: {self.grid.frechet} {row.quality.frechet:.2f} at "
            f"{row.milliseconds:.3g} ms per sample on {self.grid.device}"
        )


def recommend(
    measured: str | Path,
    *,
    milliseconds: float | int | None = None,
    memory: float | int | None = None,
) -> Recommendation:
    """Return the row with the best quality within a budget.

    Args:
        measured: the folder that `odelt evaluate` or `odelt search` wrote to, its
            `grid.json`, or a run: what was measured of its newest checkpoint, the search if both.
        milliseconds: limit per sample, in batches of the grid's size.
        memory: limit of the bytes that the program needs at once, for such a batch.

    Raises:
        InputError: there is no grid, no budget is given, or no row is within it; the message names
            the cheapest.

    Example:
        >>> best = odelt.recommend("runs/digits", milliseconds=1000)
        >>> best.config.depth in model.depths
        True
    """
    grid = load_best_grid(Path(measured))
    if milliseconds is None and memory is None:
        raise InputError("a recommendation needs a budget: give milliseconds, memory, or both")
    rows = [
        row
        for row in grid.rows
        if (milliseconds is None or row.milliseconds <= milliseconds)
        and (memory is None or row.memory <= memory)
    ]
    if not rows:
        fastest = min(row.milliseconds for row in grid.rows)
        smallest = min(row.memory for row in grid.rows)
        raise InputError(
            f"no row of {measured} is within this budget: the fastest takes {fastest:.3g} "
            f"milliseconds, the smallest needs {smallest:,} bytes"
        )
    return Recommendation(min(rows, key=lambda r: (r.quality.frechet, r.milliseconds)), grid)
