"""What the page is told: the dials of a network, and the frontier that was measured."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

from odelt_eqx.entry import typed
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.grid import GRID, SEARCH, Grid
from odelt_eqx.evaluation.recommend import load_best_grid
from odelt_eqx.ode.plan import SOLVERS, Adaptive, EmbeddedSolver, FixedSteps, Grid as TimeGrid
from odelt_eqx.parallel import describe_devices
from odelt_eqx.play.player import Player
from odelt_eqx.serialize import to_dict

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


def describe(player: Player) -> dict[str, Any]:
    """Return what the page shows, as JSON can hold it.

    The dials reach every setting that was measured so far, and the run's own.
    """
    network, run = player.network, player.run
    own = player.trained.sample
    if own.depth == "full":
        own = dataclasses.replace(own, depth=network.depth)
    grid, missing = _measured(run)
    configs = [own, *(row.config for row in (grid.rows if grid else ()))]
    fixed = [c.time for c in configs if isinstance(c.time, FixedSteps)]
    adaptive = [c.time for c in configs if isinstance(c.time, Adaptive)]
    return {
        "title": str(run),
        "device": describe_devices(),
        "count": player.count,
        "shape": player.shape,
        "classes": player.class_names,
        "guided": player.guided,
        "depths": network.depths,
        "steps": sorted({*STEPS, *(int(plan.count) for plan in fixed)}),
        "tolerances": sorted({*TOLERANCES, *(plan.rtol for plan in adaptive)}, reverse=True),
        "solvers": {"FixedSteps": list(SOLVERS), "Adaptive": get_args(EmbeddedSolver)},
        "plans": {
            "FixedSteps": to_dict(FixedSteps(), FixedSteps | Adaptive),
            "Adaptive": to_dict(Adaptive(), FixedSteps | Adaptive),
        },
        "grids": get_args(TimeGrid),
        "own": to_dict(own),
        "grid": None if grid is None else _frontier(grid),
        "missing": missing,
    }


def _measured(run: Path) -> tuple[Grid | None, str | None]:
    """Return the grid of a run, or why there is none and what to type."""
    if not any((folder / GRID).is_file() for folder in (run, run / SEARCH)):
        return None, (
            f"No setting of this run was measured yet: type {typed('evaluate', run)}, or "
            f"{typed('search', run)} to find the best ones, and load this page again."
        )
    try:
        return load_best_grid(run), None
    except InputError as error:  # it is damaged, or of another version
        return None, str(error)


def _frontier(grid: Grid) -> dict[str, Any]:
    """Return the rows of a grid, and what their numbers are."""
    return {
        "frechet": f"{grid.frechet}{grid.counts}",
        "real": grid.bounds.real.frechet,
        "batch_size": grid.batch_size,
        "device": grid.device,
        "rows": [
            {
                "config": to_dict(row.config),
                "quality": to_dict(row.quality),
                "depth": row.depth,
                "name": f"depth {row.depth}, {row.time}, guidance {row.guidance}",
                "milliseconds": row.milliseconds,
                "blocks": row.blocks,
            }
            for row in grid.rows
        ],
    }
