"""The best plan that a budget allows, from a map that was measured."""

import dataclasses
from pathlib import Path

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.grid import Cell
from odelt_eqx.evaluation.table import load_map
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.sampling.options import Options


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What to sample with, and what it promises.

    Args:
        cell: the row of the map.
        length: how each group's unit of length is solved.
        distance: what the quality's Fréchet distance is called.
        device: where it was measured.
    """

    cell: Cell
    length: FixedSteps | Adaptive
    distance: str
    device: str

    @property
    def options(self) -> Options:
        """The keyword arguments of `odelt.sample`."""
        return Options(
            time=self.cell.time,
            length=self.length,
            depth=self.cell.depth,
            guidance=self.cell.guidance,
        )

    def __str__(self) -> str:
        """Return it in one line."""
        cell = self.cell
        return (
            f"depth {cell.depth}, {cell.time.solver}, {cell.accepted:g} time steps, guidance "
            f"{cell.guidance:g}: {self.distance} {cell.quality.frechet:.2f} at "
            f"{cell.milliseconds:.3g} ms per picture on {self.device}"
        )


def recommend(
    measured: str | Path,
    *,
    milliseconds: float | int | None = None,
    memory: float | int | None = None,
) -> Recommendation:
    """Return the setting with the best quality within a budget.

    `odelt.sample(model, noise, labels, **odelt.recommend("runs/digits", milliseconds=2).options)`

    Args:
        measured: the folder that scripts/evaluate.py wrote to, or its `table.json`.
        milliseconds: most per picture, in batches of the map's size.
        memory: most bytes that the program may need at once, for such a batch.

    Raises:
        InputError: there is no map, no budget is given, or nothing was measured within it; the
            cheapest is named.
    """
    found = load_map(Path(measured))
    if milliseconds is None and memory is None:
        raise InputError("a recommendation needs a budget: give milliseconds, memory, or both")
    fits = [
        cell
        for cell in found.cells
        if (milliseconds is None or cell.milliseconds <= milliseconds)
        and (memory is None or cell.memory <= memory)
    ]
    if not fits:
        fastest = min(cell.milliseconds for cell in found.cells)
        smallest = min(cell.memory for cell in found.cells)
        raise InputError(
            f"nothing in {measured} was measured within this budget: the fastest setting takes "
            f"{fastest:.3g} milliseconds, the smallest needs {smallest:,} bytes"
        )
    best = min(fits, key=lambda cell: (cell.quality.frechet, cell.milliseconds))
    return Recommendation(best, found.length, found.frechet, found.device)
