"""Everything there is to say about a run: its map, its samples, and a page to read them on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odelt_eqx.config import TrainConfig, to_dict
from odelt_eqx.data import open_source
from odelt_eqx.evaluation.choice import FeaturesConfig, Pixels
from odelt_eqx.evaluation.decoding import open_decoder
from odelt_eqx.evaluation.devices import device, on_all_devices
from odelt_eqx.evaluation.generation import inputs
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.likelihood import Bits, measure_bits
from odelt_eqx.evaluation.measure import base_settings, measure
from odelt_eqx.evaluation.moments import load_statistics
from odelt_eqx.evaluation.page import save_page
from odelt_eqx.evaluation.pictures import save_depth_grid, save_map
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.evaluation.store import ROWS, Store
from odelt_eqx.evaluation.table import TABLE, Bounds, Map, markdown
from odelt_eqx.files import replacing
from odelt_eqx.hosts import first_does, first_says, is_first
from odelt_eqx.nn.dit import DiT
from odelt_eqx.progress import Progress
from odelt_eqx.serial import converter
from odelt_eqx.training.checkpoint import Checkpoints, run_config

FILES = ("grid.png", "table.md", TABLE, "table.png", "report.html")

NAMED = ("data", "features", "reference", "decoder", "count", "seed")
"""What the bounds depend on."""

NOISE = 1000
"""Pictures of noise at most that the worst is measured with."""


def evaluate(
    run: Path,
    config: GridConfig,
    out: Path | None = None,
    *,
    features: FeaturesConfig = Pixels(),
    command: str = "",
) -> list[Path]:
    """Measure the map of a run and write its table, its curves, its samples and a report.

    Rows measured before under the same settings are taken from `rows.jsonl` in the same folder.

    Args:
        run: run folder.
        config: which cells are measured, and how.
        out: folder of the results; the run's own by default.
        features: what pictures are compared by.
        command: what made the report, to be shown in it.

    Returns:
        The files written: grid.png, table.md, table.json, table.png, report.html.

    Raises:
        InputError: the folder is no run with a checkpoint, the features cannot be had, or the
            config asks for a depth that the model has not.
        Interrupted: a signal asked for it; the same call goes on from there.
    """
    asked, folder = run_config(run), run if out is None else out
    for depth in config.depths:
        asked.model.check_depth(depth)
    judge = _judge(asked, config, features)
    folder.mkdir(parents=True, exist_ok=True)
    with on_all_devices(run) as model:
        measured = _measured(model, judge, asked, config, run, folder)
    paths = [folder / name for name in FILES]

    def write() -> None:
        assert measured is not None  # for the type checker: the first process knows all
        grid, table, data, curves, page = paths
        with replacing(table) as beside:
            beside.write_text(markdown(measured))
        with replacing(data) as beside:
            beside.write_text(measured.text())
        save_depth_grid(measured, folder, asked.model.num_classes, grid)
        save_map(measured, curves)
        save_page(measured, asked, folder, page, command=command, run=run)

    first_does(write)
    return paths


def _judge(asked: TrainConfig, config: GridConfig, features: FeaturesConfig) -> Judge:
    return Judge(
        features.open(),
        open_source(asked.data, "train"),
        open_source(asked.data, "held-out"),
        num_classes=asked.model.num_classes,
        reference=None if config.reference is None else load_statistics(config.reference),
        decoder=open_decoder(config.autoencoder, asked.model),
        batch_size=config.batch_size,
    )


def _measured(
    model: DiT, judge: Judge, asked: TrainConfig, config: GridConfig, run: Path, folder: Path
) -> Map | None:
    """Return the map, in the first process alone."""
    store = Store(folder / ROWS)
    base = base_settings(model, judge, config, to_dict(asked)["data"])
    total = config.count * len(config.points(model.config.depths))
    cells = []
    with Progress("evaluate (pictures)", total) as progress:

        def advance(more: int, **figures: float | int) -> None:
            if figures:
                progress.show(**figures)
            progress.advance(more)

        for cell in measure(model, judge, config, folder, store=store, base=base, advance=advance):
            cells.append(cell)
    bounds = _bounds(judge, model, config, store, base)
    bits = _likelihood(model, asked, config, store, base)
    with Checkpoints(run, start=False) as checkpoints:
        step = checkpoints.latest or 0
    if not is_first():
        return None
    return Map(
        run=run.resolve().name,
        image_shape=judge.decoder.shape(model.config.image_shape),
        step=step,
        features=judge.features.name,
        reference=judge.reference,
        accuracy_by=judge.accuracy_by,
        count=config.count,
        batch_size=config.batch_size,
        length=config.length or model.config.length,
        seed=config.seed,
        device=device(),
        jax=jax.__version__,
        bounds=bounds,
        cells=tuple(cells),
        likelihood=tuple(bits),
    )


def _bounds(
    judge: Judge, model: DiT, config: GridConfig, store: Store, base: dict[str, Any]
) -> Bounds:
    """Return the best and the worst that could be expected."""
    settings = {"bounds": {k: base[k] for k in NAMED}}
    if first_says(np.array(settings in store)):
        return converter().structure(store[settings], Bounds)
    worst = min(config.count, NOISE)
    noise, labels = inputs(model.config, config.seed, 0, worst)
    real = judge.of_real(config.count)
    found = Bounds(real, judge.of([(np.asarray(noise), np.asarray(labels))], worst))
    if is_first():
        store[settings] = converter().unstructure(found)
    return found


def _likelihood(
    model: DiT, asked: TrainConfig, config: GridConfig, store: Store, base: dict[str, Any]
) -> Sequence[Bits]:
    """Return the bits per dimension of every depth and guidance weight, if they are asked for."""
    if not config.likelihood:
        return ()
    held_out = open_source(asked.data, "held-out")
    kept = {name: base[name] for name in ("weights", "data", "length", "batch_size", "seed")}
    found = []
    for depth in config.depths or model.config.depths:
        for guidance in config.guidance:
            row = {"bits": kept, "probes": config.likelihood, "at": [depth, guidance]}
            if not first_says(np.array(row in store)):
                bits = measure_bits(model, held_out, config, depth, guidance)
                if is_first():
                    store[row] = converter().unstructure(bits)
                found.append(bits)
            elif is_first():
                found.append(converter().structure(store[row], Bits))
    return found
