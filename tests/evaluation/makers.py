"""Rows, and grids as they lie beside a run, without measuring any."""

from collections.abc import Iterable
from pathlib import Path

import odelt_eqx as odelt
from odelt_eqx.evaluation.grid import GRID, Bounds, Grid, Row
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.files import write_json
from odelt_eqx.serialize import to_dict


def row(depth=2, steps=1, distance=9.0, milliseconds=1.0, memory=10, samples="a.png") -> Row:
    """Return a row of Euler steps."""
    config = odelt.SampleConfig(time=odelt.FixedSteps(steps=steps), depth=depth, guidance=1.5)
    cost = {"accepted": 1.0 * steps, "rejected": 0.0, "evaluations": 1.0, "blocks": 1.0}
    return Row(
        config,
        Quality(distance, kernel=0.1),
        **cost,
        milliseconds=milliseconds,
        memory=memory,
        device_memory=None,
        samples=samples,
    )


def write_grid(folder: Path, rows: Iterable[Row], best: float = 1.0, step: int = 1) -> Path:
    """Write a grid of these rows, with the Fréchet distance of real images; return the folder."""
    grid = Grid(
        run="run",
        step=step,
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
