"""Figures: samples of a row and over the grid, and curves of quality over cost.

Images are laid out on sheets. Vectors are points of a scatter plot of their first two values.
matplotlib is imported with the first figure: a command that draws none answers sooner.
"""

import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from odelt_eqx.data.source import Source, read, sample_indices
from odelt_eqx.evaluation.features import Samples
from odelt_eqx.evaluation.grid import Grid, Row
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.files import atomic_write, member_path
from odelt_eqx.images import rgb, save_png, tile

SAMPLES = "samples"  # folder of the first samples of each row
SHEET_PIXELS = 2**19  # pixels of a sheet, at most, so that a page of many sheets stays small
COLUMNS, ROWS, POINTS = 10, 4, 2000
LONGEST_NAME = 20  # characters of the name of a class, at most


def sheet_columns(shape: tuple[int, ...], classes: int) -> int:
    """Return the number of images side by side on a sheet: one per class if there are few."""
    wanted = classes if 2 < classes <= COLUMNS else COLUMNS
    return max(1, min(wanted, SHEET_PIXELS // (shape[0] * shape[1])))


def shown_count(shape: tuple[int, ...], classes: int, count: int) -> int:
    """Return how many of `count` samples are shown: full rows of a sheet, or many points."""
    if len(shape) != 3:
        return min(count, POINTS)
    columns = sheet_columns(shape, classes)
    rows = min(ROWS, SHEET_PIXELS // (shape[0] * shape[1] * columns), count // columns)
    return min(count, columns * max(1, rows))


def new_figure(
    width: float | int, height: float | int, layout: Literal["constrained"] | None = "constrained"
) -> Any:
    """Return an empty figure of a size in inches; its layout is None if axes are put by hand."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def colours_of(name: str, values: Any) -> Any:
    """Return the colours that a colour map of matplotlib gives values."""
    from matplotlib import colormaps

    return colormaps[name](values)


def save_row_samples(samples: Samples, classes: int, held_out: Source, path: Path) -> None:
    """Write samples, classes in turn; the axes of a scatter plot are those of the data."""
    if samples.ndim == 4:
        columns = min(len(samples), sheet_columns(samples.shape[1:], classes))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(np.round(255 * rgb(tile(np.asarray(samples), columns))).astype(np.uint8), path)
        return
    figure = new_figure(3, 3, layout=None)
    axis = figure.add_axes((0, 0, 1, 1))
    plot_points(axis, samples, np.arange(len(samples)) % classes, axis_limit(held_out))
    save_figure(figure, path)


def plot_points(axis: Any, points: Samples, labels: Any, limit: float) -> None:
    """Draw vectors by their first two values, coloured by label; of one value, a histogram."""
    points = np.asarray(points)
    if points.shape[1] == 1:
        axis.hist(points[:, 0], bins=60, range=(-limit, limit))
    else:
        colours = colours_of("tab10", np.asarray(labels) % 10)
        axis.scatter(points[:, 0], points[:, 1], s=4, c=colours, linewidths=0, alpha=0.6)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axis.set(xticks=[], yticks=[])


def axis_limit(source: Source) -> float:
    """Return the half width of axes that show the vectors of a source."""
    return 1.25 * float(np.abs(read(source, sample_indices(source, POINTS))[0]).max())


def depth_colours(depths: Any) -> dict[int, Any]:
    """Return a colour for each depth."""
    colours = colours_of("viridis", np.linspace(0.1, 0.85, len(depths)))
    return dict(zip(depths, colours, strict=True))


def log_limits(values: Any) -> tuple[float, float]:
    """Return the ends of a logarithmic axis of values; one value has some width, too.

    matplotlib's own are at times equal for it, and then the axis shows nothing.
    """
    positive = [float(value) for value in values if value > 0] or [1.0]
    return min(positive) / 1.2, 1.2 * max(positive)


def number_log_axis(side: Any) -> None:
    """Number the x or y axis of a panel, logarithmic and with its ends set, wherever they lie."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = side.get_view_interval()
    if high < 5 * low:  # there may be none of 1, 2 and 5 times a power of ten
        side.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    else:
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,)))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter("{x:g}")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def save_grid_samples(grid: Grid, judge: Judge, folder: Path) -> None:
    """Write grid.png, samples over depth and time at the first guidance, from the same noise.

    At most three time plans are shown: the first, the middle one and the last. A panel has one
    image per class, or the points of a row; points are shown beside the data. Where nothing was
    measured, or the samples are gone, a panel is empty.
    """
    rows = [row for row in grid.rows if row.guidance == grid.rows[0].guidance]
    times, depths = list(dict.fromkeys(r.time for r in rows)), sorted({r.depth for r in rows})
    times = [times[i] for i in sorted({0, (len(times) - 1) // 2, len(times) - 1})]
    names = {(row.depth, row.time): row.samples for row in rows}
    samples = {place: member_path(folder, SAMPLES, name) for place, name in names.items()}
    images = len(grid.shape) == 3
    width, height = (4, 4 * _aspect(grid, judge) + 0.2) if images else (2.3, 2.3)
    columns = len(times) + (not images)
    shown = np.arange(min(sheet_columns(grid.shape, judge.classes), grid.count) if images else 0)
    classes = [_shortened(judge.class_names[i % judge.classes]) for i in shown]
    longest = max(map(len, classes), default=0)
    slant = 40 if longest > 3 else 0
    figure = new_figure(width * columns, height * len(depths) + 0.9 + 0.06 * longest * (slant > 0))
    axes = figure.subplots(len(depths), columns, squeeze=False)
    for line, depth in zip(axes, depths, strict=True):
        line[0].set_ylabel(f"depth {depth}", rotation=0, ha="right", va="center")
        for axis, time in zip(line, times, strict=False):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            path = samples.get((depth, time))
            pixels = None if path is None else _read_sheet(path)
            if pixels is None:
                continue
            axis.imshow(pixels[: grid.shape[0] + 2] if images else pixels, interpolation="nearest")
            axis.spines[:].set_visible(not images)
    for axis, time in zip(axes[0], times, strict=False):
        axis.set_title(time)
    if images:
        for axis in axes[-1]:
            ticks = (shown + 0.5) * (grid.shape[1] + 1)
            side = "right" if slant else "center"
            axis.set_xticks(ticks, classes, rotation=slant, ha=side, parse_math=False)
            axis.tick_params(length=0)
        axes[-1, 0].set_xlabel("class asked for")
    else:
        for axis in axes[1:, -1]:
            axis.set_axis_off()
        axes[0, -1].set_title("data")
        data, labels = read(judge.held_out, sample_indices(judge.held_out, POINTS))
        plot_points(axes[0, -1], data, labels, axis_limit(judge.held_out))
    save_figure(figure, folder / "grid.png")


def _shortened(name: str) -> str:
    """Return the name of a class, or its start if it would not fit a figure."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1].rstrip()}…"


def _read_sheet(path: Path) -> UInt8[np.ndarray, "height width 3"] | None:
    """Return the pixels of a sheet; None if it is gone or damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as sheet:
            if sheet.width * sheet.height <= 4 * SHEET_PIXELS:
                return np.asarray(sheet.convert("RGB"))
    except Exception:  # decoders raise anything on a damaged file
        pass
    return None


def _aspect(grid: Grid, judge: Judge) -> float:
    """Return the height over the width of the first row of a sheet."""
    columns = min(sheet_columns(grid.shape, judge.classes), grid.count)
    return (grid.shape[0] + 2) / (columns * (grid.shape[1] + 1) + 1)


def save_curves(grid: Grid, path: Path) -> None:
    """Write quality over network evaluations and latency, one colour per depth.

    Solid lines join numbers of Euler steps; dotted ones, with a marker per solver, join steps or
    tolerances. All guidance but the first is fainter.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    real = grid.bounds.real
    names = {"accuracy": "class accuracy", "frechet": grid.frechet}
    metrics = [metric for metric in names if getattr(real, metric) is not None]
    costs = {"evaluations": "network evaluations", "milliseconds": "ms per sample"}
    curves: dict[tuple[int, str, str], list[Row]] = {}
    for row in grid.rows:
        curves.setdefault((row.depth, row.guidance, row.solver), []).append(row)
    guidances = list(dict.fromkeys(guidance for _, guidance, _ in curves))
    faintest = max(0.25, 1 - 0.3 * (len(guidances) - 1))
    alphas = dict(zip(guidances, np.linspace(1, faintest, len(guidances)), strict=True))
    solvers = sorted({solver for _, _, solver in curves}, key=lambda name: (name != "euler", name))
    markers = dict(zip(solvers, itertools.cycle("os^vDPX*"), strict=False))
    colours = depth_colours(sorted({depth for depth, _, _ in curves}))
    figure = new_figure(8.5, 3 * len(metrics))
    panels = figure.subplots(len(metrics), 2, sharey="row", sharex="col", squeeze=False)
    for metric, line in zip(metrics, panels, strict=True):
        line[0].set_ylabel(names[metric], fontsize=9)
        for cost, axis in zip(costs, line, strict=True):
            for (depth, guidance, solver), rows in curves.items():
                axis.errorbar(
                    [getattr(row, cost) for row in rows],
                    [getattr(row.quality, metric) for row in rows],
                    [getattr(row.quality, f"{metric}_error") or 0 for row in rows],
                    color=colours[depth],
                    marker=markers[solver],
                    ls="-" if solver == "euler" else ":",
                    alpha=alphas[guidance],
                )
            axis.axhline(getattr(real, metric), color="grey", ls="--")
            axis.set(xscale="log", xlim=log_limits([getattr(row, cost) for row in grid.rows]))
            number_log_axis(axis.xaxis)
            axis.grid(alpha=0.3)
    for axis, label in zip(panels[-1], costs.values(), strict=True):
        axis.set_xlabel(label)
    if max(row.quality.frechet for row in grid.rows) > 10 * real.frechet > 0:
        panels[-1, 0].set_yscale("log")
        number_log_axis(panels[-1, 0].yaxis)
    else:
        panels[-1, 0].set_ylim(0, None)
    if len(metrics) == 2:
        panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    legend = {f"depth {depth}": Line2D([], [], color=colours[depth]) for depth in colours}
    if len(solvers) > 1:
        legend |= {name: Line2D([], [], color="k", ls="", marker=m) for name, m in markers.items()}
    if len(guidances) > 1:
        names = {f"guidance {guidance}": alpha for guidance, alpha in alphas.items()}
        legend |= {name: Line2D([], [], color="k", alpha=alpha) for name, alpha in names.items()}
    legend["real samples"] = Line2D([], [], color="grey", ls="--")
    columns = 4 if max(map(len, legend)) < 30 else 2
    where = {"loc": "outside lower center", "ncols": columns}
    figure.legend(legend.values(), legend.keys(), fontsize=8, **where)
    save_figure(figure, path)
