"""Grids as they lie beside a run, without measuring any."""

from collections.abc import Iterable
from pathlib import Path

from odelt_eqx.evaluation.grid import GRID, Bounds, Grid, Row
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.files import write_json
from odelt_eqx.serialize import to_dict


def write_grid(folder: Path, rows: Iterable[Row], best: float = 1.0) -> Path:
    """Write a grid of these rows, with the Fréchet distance of real images; return the folder."""
    grid = Grid(
        run="run",
        step=1,
        shape=(8, 8, 1),
        features="pixels",
        reference="",
        accuracy_by="",
        count=10,
        batch_size=10,
        seed=0,
        device="here",
        jax="",
        bounds=Bounds(Quality(best), Quality(9.0)),
        rows=tuple(rows),
    )
    write_json(folder / GRID, to_dict(grid))
    return folder
