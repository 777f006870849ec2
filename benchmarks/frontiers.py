"""The best that each training gives for a number of block evaluations, as searches found it."""

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from measure import Output, Report

from odelt_eqx.entry import run_command
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.figures import number_log_axis, save_figure
from odelt_eqx.evaluation.grid import GRID, SEARCH, Grid, Row, load_grid
from odelt_eqx.evaluation.metrics import distance_name
from odelt_eqx.evaluation.search import is_published, scores


@dataclasses.dataclass(frozen=True)
class Config(Output):
    """What is compared.

    Args:
        runs: run folders that `odelt search` has searched, by the same features and count.
        blocks: numbers of block evaluations that a sample may cost at most.
        figure: file of the curves.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/digits"),)
    blocks: tuple[int, ...] = (6, 12, 24, 48, 96, 192, 384, 768)
    figure: Path = Path("runs/frontiers.png")


def is_plain(row: Row) -> bool:
    """Whether a row was sampled in the published way: Euler steps at one depth, unguided."""
    config = row.config
    return is_published(config) and config.guidance == 1 and config.depth_guidance == 0


def best(rows: list[Row], blocks: int) -> Row | None:
    """Return the row whose distances are nearest to the least of any that cost no more.

    By the judge for whom it is farther; None if all cost more.
    """
    affordable = [row for row in rows if row.blocks <= blocks]
    if not affordable:
        return None
    qualities = [row.quality for row in affordable]
    numbers = [(0.0, q.frechet, q.frechet if q.second is None else q.second) for q in qualities]
    return affordable[int(np.argmin(scores(np.array(numbers))))]


def frontier(rows: list[Row], blocks: tuple[int, ...]) -> dict[Row, int]:
    """Return the best rows, each with the least of the numbers of blocks for which it is."""
    found: dict[Row, int] = {}
    for most in sorted(blocks):
        row = best(rows, most)
        if row is not None:
            found.setdefault(row, most)
    return found


def distances(row: Row) -> list[tuple[float, float]]:
    """Return the Fréchet distance and its standard error, by each judge."""
    quality = row.quality
    first = quality.frechet, quality.frechet_error or 0.0
    if quality.second is None:
        return [first]
    return [first, (quality.second, quality.second_error or 0.0)]


def main(config: Config) -> None:
    """Print the table and write the figure."""
    names = [run.name for run in config.runs]
    names = names if len({*names}) == len(names) else [str(run) for run in config.runs]
    grids = {n: load_grid(run / SEARCH / GRID) for n, run in zip(names, config.runs, strict=True)}
    kinds = {(grid.features, grid.second, grid.count) for grid in grids.values()}
    if len(kinds) > 1:
        raise InputError(f"the runs must be searched by the same features and count; got {kinds}")
    most, least = max(config.blocks), min(row.blocks for g in grids.values() for row in g.rows)
    if most < least:
        raise InputError(f"no row costs at most {most} blocks, one costs {least:g}: raise --blocks")
    (features, second, _) = kinds.pop()
    names = [distance_name("Fréchet", name) for name in (features, second) if name]
    columns = ("training", "blocks at most", "sampling", "depth", "guidance", "blocks")
    columns += (*names, "precision", "recall", "ms")
    report = Report(columns, config)
    for name, grid in grids.items():
        for way, rows in ways(grid).items():
            for row, blocks in frontier(rows, config.blocks).items():
                judged = [f"{value:.2f} ± {error:.2f}" for value, error in distances(row)]
                manifold = row.quality.precision, row.quality.recall
                cells = (row.time, row.depth, row.guidance, row.blocks, *judged, *manifold)
                report.row(f"{name}, {way}", blocks, *cells, row.milliseconds)
    save_curves(grids, names, config)


def ways(grid: Grid) -> dict[str, list[Row]]:
    """Return the rows of the published way of sampling, and of any."""
    return {
        "published sampling": [row for row in grid.rows if is_plain(row)],
        "any sampling": [*grid.rows],
    }


def save_curves(grids: dict[str, Grid], names: list[str], config: Config) -> None:
    """Write the distance by each judge over block evaluations, two lines for each training."""
    figure = Figure(figsize=(4.6 * len(names), 4.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for judge, (axis, name) in enumerate(zip(panels, names, strict=True)):
        for number, (run, grid) in enumerate(grids.items()):
            for (way, rows), style in zip(ways(grid).items(), ("--", "-"), strict=True):
                found = frontier(rows, config.blocks)
                if not found:  # all rows cost more
                    continue
                x = [row.blocks for row in found]
                y, error = zip(*(distances(row)[judge] for row in found), strict=True)
                label = f"{run}, {way}"
                look = {"color": f"C{number}", "ls": style, "marker": "o", "ms": 4, "lw": 1.2}
                axis.errorbar(x, y, error, label=label, **look)
        axis.axhline(distances_of_real(grids)[judge], color="k", lw=0.8, ls=":")
        axis.set(xscale="log", yscale="log", xlabel="block evaluations", ylabel=name)
        for side in (axis.xaxis, axis.yaxis):
            number_log_axis(side)
        axis.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, ncols=2)
    save_figure(figure, config.figure)


def distances_of_real(grids: dict[str, Grid]) -> list[float]:
    """Return the distance of real samples, by each judge."""
    real = next(iter(grids.values())).bounds.real
    return [real.frechet, *([] if real.second is None else [real.second])]


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
