"""Everything there is to say about a run: its sample grid and its steps x depth table."""

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from odelt_eqx.data import ArraySource, open_source
from odelt_eqx.evaluation.grid import Cell, GridConfig, draw_noise, measure
from odelt_eqx.evaluation.pictures import save_depth_grid, save_map
from odelt_eqx.evaluation.quality import FEATURES, Judge, Quality
from odelt_eqx.files import replacing
from odelt_eqx.training.checkpoint import load, run_config
from odelt_eqx.training.progress import Progress


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


def evaluate(run: Path, config: GridConfig) -> list[Path]:
    """Measure the map of a run and write its table, its curves and its sample grid there.

    Returns:
        The files written: grid.png, table.md, table.json, table.png.

    Raises:
        InputError: the folder is no run with a checkpoint, or the config asks for a depth that the
            model has not.
    """
    model = load(run)
    for depth in config.depths:
        model.config.check_depth(depth)
    name = run_config(run).data
    train, held_out = open_source(name, "train"), open_source(name, "held-out")
    judge = Judge(train, held_out)
    noise, labels = draw_noise(model, config)
    bounds = _bounds(judge, train, held_out, np.asarray(noise), labels)
    names = ("grid.png", "table.md", "table.json", "table.png")
    grid, markdown, data, curves = paths = [run / name for name in names]

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
    total = len(config.steps) * len(config.depths or model.config.depths)
    with Progress("evaluate", total) as progress:
        for cell in measure(model, judge, config):
            cells.append(cell)
            progress.show(depth=cell.depth, steps=cell.steps, accuracy=cell.quality.accuracy)
            progress.advance()
    with replacing(markdown) as beside:
        beside.write_text(_markdown(cells, bounds, config))
    with replacing(data) as beside:
        beside.write_text(_json(cells, bounds, config))
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


def _markdown(cells: Sequence[Cell], bounds: Bounds, config: GridConfig) -> str:
    rows = [
        f"| {cell.depth} | {cell.steps} | {cell.evaluations} "
        f"| {100 * cell.quality.accuracy:.1f} % | {cell.quality.frechet:.2f} "
        f"| {cell.quality.frechet / bounds.real.frechet:.2f} × | {cell.milliseconds:.3f} |"
        for cell in cells
    ]
    for name, quality in (("real digits", bounds.real), ("noise", bounds.noise)):
        rows.append(
            f"| {name} | | | {100 * quality.accuracy:.1f} % | {quality.frechet:.2f} "
            f"| {quality.frechet / bounds.real.frechet:.2f} × | |"
        )
    note = (
        f"{config.count} pictures a row, guidance {config.guidance:g}, in batches of "
        f"{config.batch_size} on {_device()}, compilation apart. Asked class: share given the "
        f"class asked for by 5 nearest training pictures. Fréchet: distance in {FEATURES} to the "
        "held-out split; × real: over that of as many training pictures."
    )
    head = (
        "| depth | time steps | network evaluations | asked class | Fréchet | × real "
        "| ms per picture |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + f"\n\n{note}\n"


def _json(cells: Sequence[Cell], bounds: Bounds, config: GridConfig) -> str:
    document = {
        "features": FEATURES,
        "count": config.count,
        "batch_size": config.batch_size,
        "guidance": config.guidance,
        "length": {"type": type(config.length).__name__, **dataclasses.asdict(config.length)},
        "seed": config.seed,
        "device": _device(),
        "jax": jax.__version__,
        "bounds": dataclasses.asdict(bounds),
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    return json.dumps(document, indent=2) + "\n"


def _device() -> str:
    device = jax.devices()[0]
    kind = platform.machine() if device.platform == "cpu" else device.device_kind
    return f"{len(jax.devices())} x {device.platform} ({kind})"
