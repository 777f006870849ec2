"""The map measured cell by cell, from wherever one stopped."""

import statistics
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odelt_eqx.evaluation.devices import device, fingerprint
from odelt_eqx.evaluation.generation import COUNTS, Generation, Sampler, generate, inputs
from odelt_eqx.evaluation.grid import Cell, GridConfig, Point
from odelt_eqx.evaluation.quality import Judge, Quality
from odelt_eqx.evaluation.sheets import save_sheet, shown_count
from odelt_eqx.evaluation.store import Store
from odelt_eqx.hosts import first_says, is_first
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.sampling import Program
from odelt_eqx.sampling.options import Options, raise_failures
from odelt_eqx.serial import converter
from odelt_eqx.training.pace import memory
from odelt_eqx.training.signals import StopSignals

SAMPLES = "samples"


def measure(
    model: DiT,
    judge: Judge,
    config: GridConfig,
    folder: Path,
    *,
    store: Store,
    base: dict[str, Any],
    advance: Callable[..., object] = lambda *_, **__: None,
) -> Iterator[Cell]:
    """Yield the cells of the map; those in the store are not measured again.

    Every program is compiled before its first picture is timed. Of several processes, only the
    first one knows cells.

    Args:
        model: the network.
        judge: looks at the pictures.
        config: which cells, and how.
        folder: where pictures and unfinished work are kept.
        store: the rows that are known, and where new ones go.
        base: what else a row depends on: weights, data, and so on.
        advance: is told how many more pictures are made, and the latest figures.

    Raises:
        SolveError: an adaptive plan ran out of steps.
        Interrupted: a signal asked for it; the same call goes on from there.
    """
    maker, points = _Maker(model, config), config.points(model.config.depths)
    settings = [_settings(base, point) for point in points]
    known = first_says(np.array([row in store for row in settings]))
    shape = judge.decoder.shape(model.config.image_shape)
    show = shown_count(shape, model.config.num_classes, config.count)
    with StopSignals() as stop:
        for point, row, is_known in zip(points, settings, known, strict=True):
            if is_known:
                advance(config.count)
                if is_first():
                    yield converter().structure(store[row], Cell)
                continue
            judge.prepare()
            digest = f"{zlib.crc32(repr(sorted(row.items())).encode()):08x}"
            partial = folder / f".{digest}.partial.npz"
            made = generate(
                maker.sampler(point),
                judge,
                model.config,
                config,
                show=show,
                partial=partial,
                stop=stop,
                advance=advance,
            )
            if is_first():
                samples = f"{SAMPLES}/{_filename(point)}-{digest}.png"
                save_sheet(judge.decoder(made.shown), model.config.num_classes, folder / samples)
                cell = maker.cell(point, made, judge.quality(made.tally), samples)
                store[row] = converter().unstructure(cell)
                partial.unlink(missing_ok=True)
                advance(0, depth=cell.depth, steps=cell.accepted, frechet=cell.quality.frechet)
                yield cell


class _Maker:
    """Makes the pictures of any point, with as few programs as it takes."""

    def __init__(self, model: DiT, config: GridConfig):
        self._model, self._config = model, config
        self._kind, self._program = None, None

    def _compiled(self, point: Point) -> Program:
        """Return the program of a point; only the last one is kept."""
        if self._program is None or point.program != self._kind:
            options = Options(
                time=point.time,
                length=self._config.length,
                depth=point.depth,
                guidance=point.guidance,
            )
            batch = inputs(self._model.config, self._config.seed, 0, self._config.batch_size)
            self._kind, self._program = point.program, Program(self._model, *batch, **options)
            self._program(*batch, point.time, point.guidance)  # what happens once is not timed
        return self._program

    def sampler(self, point: Point) -> Sampler:
        """Return what makes a batch of a point's pictures."""
        program = self._compiled(point)
        length = self._config.length or self._model.config.length

        def sample(noise: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
            images, stats = program(noise, labels, point.time, point.guidance)
            raise_failures(images, stats, point.time, length)
            return images, stats

        return sample

    def cell(self, point: Point, made: Generation, quality: Quality, samples: str) -> Cell:
        """Return the row of a point."""
        count = self._config.count
        return Cell(
            depth=point.depth,
            guidance=point.guidance,
            time=point.time,
            **{name: float(sum_ / count) for name, sum_ in zip(COUNTS, made.taken, strict=True)},
            quality=quality,
            milliseconds=1e3 * statistics.median(made.seconds) / self._config.batch_size,
            memory=self._compiled(point).peak_bytes,
            device_memory=memory().get("device_peak_bytes"),
            samples=samples,
        )


def base_settings(model: DiT, judge: Judge, config: GridConfig, data: Any) -> dict[str, Any]:
    """Return what every row of a map depends on beside its point."""
    plan = config.length or model.config.length
    return {
        "weights": fingerprint(model),
        "data": data,
        "features": judge.features.name,
        "reference": judge.reference,
        "decoder": judge.decoder.name,
        "length": converter().unstructure(plan, FixedSteps | Adaptive),
        "count": config.count,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "device": device(),
    }


def _settings(base: dict[str, Any], point: Point) -> dict[str, Any]:
    plan = converter().unstructure(point.time, FixedSteps | Adaptive)
    return {**base, "depth": point.depth, "guidance": point.guidance, "time": plan}


def _filename(point: Point) -> str:
    plan = point.time
    size = f"{plan.rtol:g}" if isinstance(plan, Adaptive) else plan.steps
    return f"depth-{point.depth}-{plan.solver}-{size}-guidance-{point.guidance:g}"
