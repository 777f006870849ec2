"""Where on the two axes a network is wrong: its held-out loss by time, step index and depth."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Real

from odelt_eqx.condition import Condition
from odelt_eqx.data.source import load_into_memory
from odelt_eqx.evaluation.figures import depth_colours, new_figure, save_figure
from odelt_eqx.evaluation.grid import markdown_table
from odelt_eqx.evaluation.measure import condition_of, network_on_devices
from odelt_eqx.files import write_json, write_text
from odelt_eqx.network import Network
from odelt_eqx.objective import Networks, Objective, Teacher, TrainingTime, innermost
from odelt_eqx.parallel import broadcast, distribute, place, replicate
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.load import load_teacher, other_examples, run_config
from odelt_eqx.training.step import squared_error

TIME_BINS = 8
DRAWS = 4096  # draws of the objective that the losses of a depth are means of
BATCH = 512


@dataclasses.dataclass(frozen=True)
class Loss:
    """Mean squared error of the velocity in one bin, at one depth."""

    depth: int
    axis: str  # "time" or "step"
    start: float  # of the bin of times, or the step index
    mean: float
    error: float  # standard error of the mean
    count: int  # draws in the bin


def validate(run: Path, out: Path | None = None, *, seconds: float | None = None) -> list[Path]:
    """Write the held-out losses of a run by time, step index and depth.

    They are those of the EMA weights under the run's own objective of the time axis:
    every depth has the same targets from the same draws.

    Args:
        out: folder of the results; the run's own by default.
        seconds: about how long it may take: the draws are fewer otherwise, one batch at least.

    Returns:
        The files written, to `out` or to the run folder: validation.md, .json and .png.

    Raises:
        InputError: the folder is not a run with a checkpoint, or its data have other classes than
            when it began.
    """
    config, folder = run_config(run), run if out is None else out
    other_examples(run, config.data.open("train").contents)
    objective = innermost(config.objective)
    when = TrainingTime(config.steps - 1, config.steps)
    source = load_into_memory(config.data.open("held-out"), DRAWS)
    batches, started = -(-DRAWS // min(len(source), BATCH)), monotonic()
    with network_on_devices(run) as network:
        teacher = place(load_teacher(run) or network, jax.sharding.get_mesh())
        networks = Networks(Teacher(network), Teacher(network), Teacher(teacher))
        examples = jnp.asarray(source.x), condition_of(network, source.condition)
        draws: dict[int, list[tuple[np.ndarray, ...]]] = {depth: [] for depth in network.depths}
        for index in range(batches):
            key = jax.random.fold_in(jax.random.key(config.seed), index)
            for depth, own in draws.items():
                drawn = _errors(networks, objective, *examples, key, depth, when)
                own.append(tuple(map(np.asarray, drawn)))
            late = seconds is not None and monotonic() - started > seconds
            if broadcast(np.array(late)):
                break
    losses = []
    for depth, own in draws.items():
        losses += binned(depth, *(np.concatenate(x) for x in zip(*own, strict=True)))
    paths = [folder / f"validation.{suffix}" for suffix in ("md", "json", "png")]
    write_text(paths[0], _markdown(losses))
    write_json(paths[1], to_dict(losses))
    _save_curves(losses, paths[2])
    return paths


@eqx.filter_jit
def _errors(
    networks: Networks,
    objective: Objective,
    data: Float[Array, "count *shape"],
    condition: Condition | None,
    key: Key[Array, ""],
    depth: int,
    when: TrainingTime,
) -> tuple[Array, Array, Array]:
    """Return time, step index and error of one batch of draws, the same at each depth."""
    chosen, drawn = jax.random.split(key)
    size = min(len(data), BATCH)
    order = jax.random.permutation(chosen, len(data))[:size]
    data, condition = replicate(jax.tree.map(lambda x: x[order], (data, condition)))
    network: Network = networks.student.network
    draws = objective.draw(drawn, size, network, when)
    targets = objective.targets(draws, data, condition, networks)
    targets = dataclasses.replace(targets, depth=depth)
    error = squared_error(distribute(network), targets)
    return replicate((targets.t, targets.step_index, error))


def binned(
    depth: int,
    times: Float[np.ndarray, " draws"],
    steps: Real[np.ndarray, " draws"],
    errors: Float[np.ndarray, " draws"],
) -> list[Loss]:
    """Return the loss in each bin of time and, if there are several, of each step index.

    Bins of time hold the smallest step alone, which is the flow field where there is one: larger
    steps have other targets, and their times lie on a grid.
    """
    steps = np.round(steps)
    smallest = steps == steps.max()
    time_bins = np.minimum(np.floor(times * TIME_BINS), TIME_BINS - 1) / TIME_BINS
    axes = {"time": (time_bins[smallest], errors[smallest])}
    if not smallest.all():
        axes["step"] = steps, errors
    losses = []
    for axis, (bins, values) in axes.items():
        for start in np.unique(bins):
            inside = values[bins == start]
            error = inside.std(ddof=1) / np.sqrt(len(inside)) if len(inside) > 1 else 0
            mean = float(inside.mean())
            losses.append(Loss(depth, axis, float(start), mean, float(error), len(inside)))
    return losses


def _markdown(losses: Sequence[Loss]) -> str:
    """Return one table per axis, a line per depth."""
    page = ""
    for axis, head in (("time", "t from {:g}"), ("step", "step index {:g}")):
        own = [loss for loss in losses if loss.axis == axis]
        starts = sorted({loss.start for loss in own})
        table = [["depth", *map(head.format, starts)]] if own else []
        for depth in sorted({loss.depth for loss in own}):
            row = [loss for loss in own if loss.depth == depth]
            table.append([str(depth), *(f"{loss.mean:.4f} ± {loss.error:.4f}" for loss in row)])
        page += markdown_table(table) + "\n"
    return page + "Mean squared error of the velocity on held-out data, EMA weights.\n"


def _save_curves(losses: Sequence[Loss], path: Path) -> None:
    """Write one panel per axis, a curve per depth."""
    names = {"time": "time t (smallest step)", "step": "step index"}
    axes = [axis for axis in names if any(loss.axis == axis for loss in losses)]
    figure = new_figure(4.5 * len(axes), 3.6)
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        own = [loss for loss in losses if loss.axis == axis]
        shift = 0.5 / TIME_BINS if axis == "time" else 0
        for depth, colour in depth_colours(sorted({loss.depth for loss in own})).items():
            numbers = [(x.start + shift, x.mean, x.error) for x in own if x.depth == depth]
            label = f"depth {depth}"
            panel.errorbar(*np.transpose(numbers), marker="o", ms=4, color=colour, label=label)
        panel.set_xlabel(names[axis])
        if max(loss.mean for loss in own) > 20 * min(loss.mean for loss in own):
            panel.set_yscale("log")
        else:
            panel.set_ylim(0, None)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out squared error")
    panels[0].legend()
    save_figure(figure, path)
