"""Pictures of samples and of the map."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from odelt_eqx.evaluation.grid import Cell
from odelt_eqx.evaluation.sheets import columns, first_row
from odelt_eqx.evaluation.table import Map, solver
from odelt_eqx.files import replacing

PANELS = 3
"""Step counts at most in the picture of samples: the first, the middle one and the last."""


def save_depth_grid(
    measured: Map,
    folder: Path,
    num_classes: int,
    path: Path,
) -> None:
    """Write the class x depth picture: one panel a time plan, one row a depth, one column a class.

    Every panel and row starts from the same noise, so the eye can follow one picture across. It is
    that of the first guidance weight.

    Args:
        measured: the map.
        folder: where its sheets of samples lie.
        num_classes: of the model.
        path: where to write the PNG.
    """
    guidance = measured.cells[0].guidance
    depths = sorted({cell.depth for cell in measured.cells})
    plans = list(dict.fromkeys(plan_name(cell) for cell in measured.cells))
    last = len(plans) - 1
    plans = [plans[i] for i in sorted({0, last // 2, last})][:PANELS]
    found = {(plan_name(c), c.depth): c for c in measured.cells if c.guidance == guidance}
    figure = Figure(figsize=(6.8, len(plans) * (0.45 + 0.6 * len(depths))), layout="constrained")
    axes = figure.subplots(len(plans), 1, squeeze=False)[:, 0]
    height, width, _ = measured.image_shape
    shown = min(columns(measured.image_shape, num_classes), measured.count)
    for panel, plan in zip(axes, plans, strict=True):
        strips = [first_row(folder / found[plan, d].samples, height)[1:] for d in depths]
        panel.imshow(np.concatenate(strips), interpolation="nearest", aspect="equal")
        ends = [(i + 0.5) * (height + 1) for i in range(len(depths))]
        panel.set_yticks(ends, [str(depth) for depth in depths])
        classes = [str(i % num_classes) for i in range(shown)]
        panel.set_xticks([(i + 0.5) * (width + 1) for i in range(shown)], classes)
        panel.tick_params(length=0)
        panel.set_ylabel("depth (blocks)")
        panel.set_title(plan, fontsize=10)
        for edge in panel.spines.values():
            edge.set_visible(False)
    axes[-1].set_xlabel("class asked for")
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130)


def plan_name(cell: Cell) -> str:
    """Return what a panel calls how a cell solved the time axis."""
    if cell.time.solver == "euler":
        return f"{cell.accepted:g} time step{'s' if cell.accepted != 1 else ''}"
    return solver(cell.time)


def save_map(measured: Map, path: Path) -> None:
    """Write the map as curves: quality against evaluations and latency, one colour a depth.

    Numbers of Euler steps are joined by a solid line, the tolerances of each adaptive solver by a
    dotted one with a marker of its own; guidance weights but the first by fainter ones.
    """
    cells, real = measured.cells, measured.bounds.real
    figure = Figure(figsize=(8.5, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    depths = sorted({cell.depth for cell in cells})
    shades = colormaps["viridis"](np.linspace(0.1, 0.85, len(depths)))
    colours = dict(zip(depths, shades, strict=True))
    curves: dict[tuple[int, float, str], list[Cell]] = {}
    for cell in cells:
        curves.setdefault((cell.depth, cell.guidance, cell.time.solver), []).append(cell)
    weights = list(dict.fromkeys(cell.guidance for cell in cells))
    adaptive = sorted({solver for _, _, solver in curves} - {"euler"})
    markers = dict(zip(adaptive, "s^vDPX*", strict=False))
    for (depth, guidance, name), row in curves.items():
        label = f"depth {depth}" + ("" if name == "euler" else f", {name}")
        label += f", guidance {guidance:g}" if len(weights) > 1 else ""
        look = {"marker": "o"} if name == "euler" else {"marker": markers[name], "ls": ":"}
        faint = max(0.25, 1 - 0.3 * weights.index(guidance))
        for column, cost in enumerate(("evaluations", "milliseconds")):
            x = [getattr(cell, cost) for cell in row]
            style = {"color": colours[depth], "label": label, "ms": 5, "alpha": faint, **look}
            shares = [100 * (cell.quality.accuracy or 0) for cell in row]
            panels[0, column].plot(x, shares, **style)
            errors = [cell.quality.frechet_error or 0 for cell in row]
            panels[1, column].errorbar(
                x, [cell.quality.frechet for cell in row], errors, capsize=2, **style
            )
    for column, label in enumerate(("network evaluations", "milliseconds per picture")):
        style = {"color": "grey", "ls": "--", "label": "real pictures"}
        panels[0, column].axhline(100 * (real.accuracy or 0), **style)
        panels[1, column].axhline(real.frechet, **style)
        panels[1, column].set(xlabel=label, xscale="log")
        panels[1, column].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    worst = min(cell.quality.accuracy or 0 for cell in cells)
    panels[0, 0].set(ylim=(max(0, 100 * worst - 10), 101), ylabel="shows the class asked for (%)")
    panels[1, 0].set_ylabel(measured.frechet)
    if max(cell.quality.frechet for cell in cells) > 10 * real.frechet > 0:
        panels[1, 0].set_yscale("log")
    else:
        panels[1, 0].set_ylim(0, None)
    panels[0, 0].legend(loc="lower right", fontsize=8, ncols=1 + (len(curves) > 6))
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110)
