"""Everything there is to say about a run: its sample grid and its steps x depth table."""

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odelt_eqx.data import ArraySource, in_memory, open_source
from odelt_eqx.evaluation.devices import on_all_devices
from odelt_eqx.evaluation.grid import Cell, GridConfig, draw_noise, measure
from odelt_eqx.evaluation.likelihood import Bits, measure_bits
from odelt_eqx.evaluation.pictures import save_depth_grid, save_map
from odelt_eqx.evaluation.quality import FEATURES, Judge, Quality
from odelt_eqx.files import replacing
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.progress import Progress
from odelt_eqx.training.checkpoint import run_config

EXAMPLES = 10_000
"""Training pictures and held-out pictures that others are judged by, at most so many of each."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What the figures mean: the best and the worst that could be expected.

    Args:
        real: distance of as many training pictures to the held-out ones, and how often the
            held-out ones are given their own class.
        noise: both for standard normal noise.
    """

    real: Quality
    noise: Quality


def evaluate(run: Path, config: GridConfig, out: Path | None = None) -> list[Path]:
    """Measure the map of a run and write its table, its curves and its sample grid.

    Args:
        run: run folder.
        config: which cells are measured, and how.
        out: folder of the results; the run's own by default.

    Returns:
        The files written: grid.png, table.md, table.json, table.png.

    Raises:
        InputError: the folder is no run with a checkpoint, or the config asks for a depth that the
            model has not.
    """
    with on_all_devices(run) as model:
        return _evaluate(model, run, config, out)


def _evaluate(model: DiT, run: Path, config: GridConfig, out: Path | None) -> list[Path]:
    for depth in config.depths:
        model.config.check_depth(depth)
    data = run_config(run).data
    unseen = open_source(data, "held-out")
    train, held_out = in_memory(open_source(data, "train"), EXAMPLES), in_memory(unseen, EXAMPLES)
    judge = Judge(train, held_out)
    noise, labels = draw_noise(model, config)
    bounds = _bounds(judge, train, held_out, np.asarray(noise), labels)
    names = ("grid.png", "table.md", "table.json", "table.png")
    folder = run if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    grid, markdown, data, curves = paths = [folder / name for name in names]

    classes = model.config.num_classes
    save_depth_grid(
        model,
        noise[:classes],
        labels[:classes],
        grid,
        length=config.length,
        guidance=config.guidance,
    )
    cells = []
    total = len(config.plans) * len(config.depths or model.config.depths)
    with Progress("evaluate", total) as progress:
        for cell in measure(model, judge, config):
            cells.append(cell)
            figures = {"evaluations": cell.evaluations, "accuracy": cell.quality.accuracy}
            progress.show(depth=cell.depth, **figures)
            progress.advance()
    bits = measure_bits(model, unseen, config) if config.likelihood else ()
    with replacing(markdown) as beside:
        beside.write_text(_markdown(cells, bounds, bits, config))
    with replacing(data) as beside:
        beside.write_text(_json(cells, bounds, bits, config))
    save_map(cells, bounds.real, curves)
    return paths


def _bounds(
    judge: Judge,
    train: ArraySource,
    held_out: ArraySource,
    noise: np.ndarray,
    labels: np.ndarray,
) -> Bounds:
    chosen = np.random.default_rng(0).permutation(len(train))[: len(noise)]
    same = judge(train.images[chosen], train.labels[chosen])
    own = judge(held_out.images, held_out.labels)
    return Bounds(
        real=Quality(frechet=same.frechet, accuracy=own.accuracy), noise=judge(noise, labels)
    )


def _markdown(
    cells: Sequence[Cell], bounds: Bounds, bits: Sequence[Bits], config: GridConfig
) -> str:
    rows = [
        f"| {cell.depth} | {_named(cell.time)} | {_steps(cell)} "
        f"| {cell.evaluations:g} | {cell.blocks:g} "
        f"| {100 * cell.quality.accuracy:.1f} % | {cell.quality.frechet:.2f} "
        f"| {cell.quality.frechet / bounds.real.frechet:.2f} × | {cell.milliseconds:.3f} |"
        for cell in cells
    ]
    for name, quality in (("real data", bounds.real), ("noise", bounds.noise)):
        rows.append(
            f"| {name} | | | | | {100 * quality.accuracy:.1f} % | {quality.frechet:.2f} "
            f"| {quality.frechet / bounds.real.frechet:.2f} × | |"
        )
    note = (
        f"{config.count} pictures a row, guidance {config.guidance:g}, in batches of "
        f"{config.batch_size} on {_device()}, compilation apart. Asked class: share given the "
        f"class asked for by 5 nearest training pictures. Fréchet: distance in {FEATURES} to the "
        "held-out split; × real: over that of as many training pictures."
    )
    head = (
        "| depth | time solver | time steps | network evaluations | block evaluations "
        "| asked class | Fréchet | × real | ms per picture |\n" + "|---" * 9 + "|\n"
    )
    table = head + "\n".join(rows) + f"\n\n{note}\n"
    if not bits:
        return table
    likely = "\n".join(
        f"| {row.depth} | {row.bits:.3f} ± {row.error:.3f} | {row.evaluations:g} |" for row in bits
    )
    return (
        f"{table}\n| depth | bits per dimension of held-out data | network evaluations |\n"
        f"|---|---|---|\n{likely}\n"
    )


def _named(plan: FixedSteps | Adaptive) -> str:
    return f"{plan.solver}, {plan.rtol:g}" if isinstance(plan, Adaptive) else plan.solver


def _steps(cell: Cell) -> str:
    rejected = f" + {cell.rejected:g} rejected" if cell.rejected else ""
    return f"{cell.accepted:g}{rejected}"


def _json(cells: Sequence[Cell], bounds: Bounds, bits: Sequence[Bits], config: GridConfig) -> str:
    document = {
        "features": FEATURES,
        "count": config.count,
        "batch_size": config.batch_size,
        "guidance": config.guidance,
        "length": _described(config.length),
        "seed": config.seed,
        "device": _device(),
        "jax": jax.__version__,
        "bounds": dataclasses.asdict(bounds),
        "cells": [
            {
                **{f.name: getattr(cell, f.name) for f in dataclasses.fields(cell)},
                "time": _described(cell.time),
                "quality": dataclasses.asdict(cell.quality),
            }
            for cell in cells
        ],
        "likelihood": [dataclasses.asdict(row) for row in bits],
    }
    return json.dumps(document, indent=2) + "\n"


def _described(plan: FixedSteps | Adaptive | None) -> dict[str, Any] | None:
    return plan and {"type": type(plan).__name__, **dataclasses.asdict(plan)}


def _device() -> str:
    device = jax.devices()[0]
    kind = platform.machine() if device.platform == "cpu" else device.device_kind
    return f"{len(jax.devices())} x {device.platform} ({kind})"
