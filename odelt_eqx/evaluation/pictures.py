"""Pictures of samples and of the map."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from odelt_eqx.evaluation.grid import Cell
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.files import replacing
from odelt_eqx.images import rgb, tile
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import FixedSteps, Plan
from odelt_eqx.sampling import sample


def save_depth_grid(
    model: DiT,
    noise: Float[Array, "count height width channels"],
    labels: Int[np.ndarray, " count"],
    path: Path,
    *,
    steps: Sequence[int] = (1, 4, 64),
    length: Plan | None = None,
    guidance: float = 1.0,
) -> None:
    """Write the class x depth picture: one panel a step count, one row a depth, one column a class.

    Every panel and row starts from the same noise, so the eye can follow one picture across.

    Args:
        model: the network.
        noise: one per class.
        labels: the classes.
        path: where to write the PNG.
        steps: Euler steps in time, one panel each.
        length: how each group's unit of length is solved; None as the model's config says.
        guidance: classifier-free guidance weight.
    """
    depths = model.config.depths
    height = len(steps) * (0.45 + 0.6 * len(depths))
    figure = Figure(figsize=(6.8, height), layout="constrained")
    axes = figure.subplots(len(steps), 1, squeeze=False)[:, 0]
    for panel, count in zip(axes, steps, strict=True):
        rows = [
            np.asarray(
                sample(
                    model,
                    noise,
                    jnp.asarray(labels),
                    time=FixedSteps(steps=count),
                    length=length,
                    depth=depth,
                    guidance=guidance,
                )
            )
            for depth in depths
        ]
        sheet = rgb(tile(np.concatenate(rows), len(labels)))
        panel.imshow(sheet, interpolation="nearest", aspect="equal")
        cell_h, cell_w = (s + 1 for s in model.config.image_shape[:2])
        panel.set_yticks([(i + 0.5) * cell_h for i in range(len(depths))], map(str, depths))
        panel.set_xticks([(i + 0.5) * cell_w for i in range(len(labels))], map(str, labels))
        panel.tick_params(length=0)
        panel.set_ylabel("depth (blocks)")
        panel.set_title(f"{count} time step{'s' if count > 1 else ''}", fontsize=10)
        for edge in panel.spines.values():
            edge.set_visible(False)
    axes[-1].set_xlabel("class asked for")
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130)


def save_map(cells: Sequence[Cell], real: Quality, path: Path) -> None:
    """Write the map as curves: quality against evaluations and latency, one colour a depth.

    Numbers of Euler steps are joined by a solid line, the tolerances of each adaptive solver by a
    dotted one with a marker of its own.
    """
    figure = Figure(figsize=(8.5, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    depths = sorted({cell.depth for cell in cells})
    shades = colormaps["viridis"](np.linspace(0.1, 0.85, len(depths)))
    colours = dict(zip(depths, shades, strict=True))
    curves: dict[tuple[int, str], list[Cell]] = {}
    for cell in cells:
        curves.setdefault((cell.depth, cell.time.solver), []).append(cell)
    adaptive = sorted({solver for _, solver in curves} - {"euler"})
    markers = dict(zip(adaptive, "s^vDPX*", strict=False))
    for (depth, solver), row in curves.items():
        label = f"depth {depth}" + ("" if solver == "euler" else f", {solver}")
        look = {"marker": "o"} if solver == "euler" else {"marker": markers[solver], "ls": ":"}
        for column, cost in enumerate(("evaluations", "milliseconds")):
            x = [getattr(cell, cost) for cell in row]
            style = {"color": colours[depth], "label": label, "ms": 5, **look}
            panels[0, column].plot(x, [100 * cell.quality.accuracy for cell in row], **style)
            panels[1, column].plot(x, [cell.quality.frechet for cell in row], **style)
    for column, label in enumerate(("network evaluations", "milliseconds per picture")):
        panels[0, column].axhline(100 * real.accuracy, color="grey", ls="--", label="real data")
        panels[1, column].axhline(real.frechet, color="grey", ls="--", label="real data")
        panels[1, column].set(xlabel=label, xscale="log")
        panels[1, column].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    worst = min(cell.quality.accuracy for cell in cells)
    panels[0, 0].set(ylim=(max(0, 100 * worst - 10), 101), ylabel="shows the class asked for (%)")
    panels[1, 0].set_ylabel("Fréchet distance in pixels")
    if max(cell.quality.frechet for cell in cells) > 10 * real.frechet:
        panels[1, 0].set_yscale("log")
    else:
        panels[1, 0].set_ylim(0, None)
    panels[0, 0].legend(loc="lower right", fontsize=8, ncols=1 + (len(curves) > 6))
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110)
