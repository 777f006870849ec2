"""Where on the two axes a network is wrong: its loss on held-out data by time, step and depth."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Real
from matplotlib import colormaps
from matplotlib.figure import Figure

from odelt_eqx.data import ArraySource, in_memory, open_source
from odelt_eqx.evaluation.devices import on_all_devices
from odelt_eqx.files import replacing
from odelt_eqx.nn.dit import DiT
from odelt_eqx.objective import LengthConsistency, Networks, Objective, Teacher, TrainingTime
from odelt_eqx.sharding import placed, whole
from odelt_eqx.training.checkpoint import load_teacher, run_config
from odelt_eqx.training.step import squared_error

TIME_BINS = 8
DRAWS = 4096
"""Draws of the objective that a depth's losses are taken from."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """Mean squared error of the velocity in one bin.

    Args:
        depth: blocks run.
        axis: "time" or "step".
        start: where the bin of times begins, or the step index.
        mean: over the draws in the bin.
        error: standard error of that mean.
        count: draws in the bin.
    """

    depth: int
    axis: str
    start: float
    mean: float
    error: float
    count: int


def validate(run: Path, out: Path | None = None) -> list[Path]:
    """Write the held-out losses of a run by time bin, step index and depth.

    They are those of the averaged weights under the run's own objective, without length
    consistency: every depth is asked for the same targets, from the same draws.

    Args:
        run: run folder.
        out: folder of the results; the run's own by default.

    Returns:
        The files written: validation.md, validation.json, validation.png.

    Raises:
        InputError: the folder is no run with a checkpoint.
    """
    with on_all_devices(run) as model:
        losses = _measured(model, run)
    folder = run if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    names = ("validation.md", "validation.json", "validation.png")
    table, data, picture = paths = [folder / name for name in names]
    with replacing(table) as beside:
        beside.write_text(_markdown(losses))
    with replacing(data) as beside:
        beside.write_text(json.dumps([dataclasses.asdict(loss) for loss in losses], indent=2))
    _save_curves(losses, picture)
    return paths


def _measured(model: DiT, run: Path) -> list[Loss]:
    """Return the losses of every depth, from the same draws."""
    config = run_config(run)
    objective = config.objective
    objective = objective.objective if isinstance(objective, LengthConsistency) else objective
    teacher = placed(load_teacher(run) or model, jax.sharding.get_mesh())
    networks = Networks(Teacher(model), Teacher(model), Teacher(teacher))
    when = TrainingTime(config.steps - 1, config.steps)
    source = in_memory(open_source(config.data, "held-out"), DRAWS)
    return [
        loss
        for depth in model.config.depths
        for loss in binned(depth, *_errors(networks, objective, source, depth, when, config.seed))
    ]


def binned(
    depth: int,
    times: Float[np.ndarray, " draws"],
    steps: Real[np.ndarray, " draws"],
    errors: Float[np.ndarray, " draws"],
) -> list[Loss]:
    """Return the loss in each bin of time and, where there are several, of each step index.

    Bins of time hold the smallest step alone, which is the flow field where there is one: larger
    steps have other targets, and their times lie on a grid.
    """
    steps = np.round(steps)
    smallest = steps == steps.max()
    time_bins = np.minimum(np.floor(times * TIME_BINS), TIME_BINS - 1) / TIME_BINS
    losses = _means(depth, "time", time_bins[smallest], errors[smallest])
    return losses if smallest.all() else losses + _means(depth, "step", steps, errors)


def _means(depth: int, axis: str, bins: np.ndarray, errors: np.ndarray) -> list[Loss]:
    losses = []
    for start in np.unique(bins):
        inside = errors[bins == start]
        error = float(inside.std(ddof=1) / np.sqrt(len(inside))) if len(inside) > 1 else 0.0
        losses.append(Loss(depth, axis, float(start), float(inside.mean()), error, len(inside)))
    return losses


def _errors(
    networks: Networks,
    objective: Objective,
    source: ArraySource,
    depth: int,
    when: TrainingTime,
    seed: int,
) -> Sequence[np.ndarray]:
    """Return time, step index and error of every draw; the draws are the same at each depth."""
    images, labels = jnp.asarray(source.images), jnp.asarray(source.labels)
    size = min(len(images), 512)
    rows = []
    for index in range(-(-DRAWS // size)):
        chosen, drawn = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
        order = jax.random.permutation(chosen, len(images))[:size]
        rows.append(
            _one_batch(networks, objective, images[order], labels[order], drawn, depth, when)
        )
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


@eqx.filter_jit
def _one_batch(
    networks: Networks,
    objective: Objective,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    depth: int,
    when: TrainingTime,
) -> tuple[Array, Array, Array]:
    images, labels = whole((images, labels))
    draws = objective.draw(key, len(labels), networks.config, when)
    targets = objective.targets(draws, images, labels, networks)
    targets = dataclasses.replace(targets, depth=depth)
    return whole((targets.t, targets.step_index, squared_error(networks.student.model, targets)))


def _markdown(losses: Sequence[Loss]) -> str:
    """Return one table an axis, a row a depth."""
    tables = []
    for axis, head in (("time", "t from {:g}"), ("step", "step index {:g}")):
        own = [loss for loss in losses if loss.axis == axis]
        starts = sorted({loss.start for loss in own})
        if not starts:
            continue
        lines = ["| depth | " + " | ".join(head.format(start) for start in starts) + " |"]
        lines.append("|---" * (len(starts) + 1) + "|")
        for depth in sorted({loss.depth for loss in own}):
            row = {loss.start: loss for loss in own if loss.depth == depth}
            cells = (f"{row[s].mean:.4f} ± {row[s].error:.4f}" for s in starts)
            lines.append(f"| {depth} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    note = "Mean squared error of the velocity on held-out data, averaged weights."
    return "\n\n".join([*tables, note]) + "\n"


def _save_curves(losses: Sequence[Loss], path: Path) -> None:
    """Write one panel an axis, a curve a depth."""
    axes = [axis for axis in ("time", "step") if any(loss.axis == axis for loss in losses)]
    figure = Figure(figsize=(4.5 * len(axes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    depths = sorted({loss.depth for loss in losses})
    colours = colormaps["viridis"](np.linspace(0.1, 0.85, len(depths)))
    for panel, axis in zip(panels, axes, strict=True):
        for depth, colour in zip(depths, colours, strict=True):
            row = [loss for loss in losses if (loss.axis, loss.depth) == (axis, depth)]
            shift = 0.5 / TIME_BINS if axis == "time" else 0.0
            panel.errorbar(
                [loss.start + shift for loss in row],
                [loss.mean for loss in row],
                [loss.error for loss in row],
                marker="o",
                ms=4,
                color=colour,
                label=f"depth {depth}",
            )
        panel.set_xlabel({"time": "time t (smallest step)", "step": "step index"}[axis])
        means = [loss.mean for loss in losses if loss.axis == axis]
        if max(means) > 20 * min(means):
            panel.set_yscale("log")
        else:
            panel.set_ylim(0, None)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out squared error")
    panels[0].legend()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110)
