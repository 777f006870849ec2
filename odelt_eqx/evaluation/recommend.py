"""The best row of a measured grid within a budget."""

import dataclasses
from pathlib import Path

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.grid import Grid, Row, load_grid
from odelt_eqx.sampling import SampleConfig


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A row of a grid to sample with."""

    row: Row
    grid: Grid

    @property
    def config(self) -> SampleConfig:
        """How to run the network, for `odelt.sample`."""
        return self.row.config

    def __str__(self) -> str:
        row = self.row
        return (
            f"depth {row.depth}, {row.config.time.solver}, {row.accepted:g} time steps, guidance "
            f"{row.config.guidance:g}: {self.grid.frechet} {row.quality.frechet:.2f} at "
            f"{row.milliseconds:.3g} ms per sample on {self.grid.device}"
        )


def recommend(
    measured: str | Path,
    *,
    milliseconds: float | int | None = None,
    memory: float | int | None = None,
) -> Recommendation:
    """Return the row with the best quality within a budget.

    `odelt.sample(model, noise, labels, odelt.recommend("runs/digits", milliseconds=2).config)`

    Args:
        measured: the folder that scripts/evaluate.py wrote to, or its `grid.json`.
        milliseconds: limit per sample, in batches of the grid's size.
        memory: limit of the bytes that the program needs at once, for such a batch.

    Raises:
        InputError: there is no grid, no budget is given, or no row is within it; the message names
            the cheapest.
    """
    grid = load_grid(Path(measured))
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
