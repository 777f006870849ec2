"""The map of what a model can do: quality and cost over time steps x depth."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.quality import Judge, Quality
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import Adaptive, EmbeddedSolver, FixedSteps
from odelt_eqx.ode.time import SolveStats
from odelt_eqx.sampling import sample_with_stats
from odelt_eqx.sampling.options import Options, raise_failures


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Which cells are measured, and how.

    Args:
        steps: numbers of Euler steps in time.
        solvers: adaptive solvers of the time ODE, each measured at each of the tolerances.
        tolerances: relative and absolute tolerances of the adaptive solvers.
        depths: depths in blocks; none given means all that the model has.
        count: pictures per cell, classes in turn.
        batch_size: pictures sampled at once; latency is per picture of such a batch.
        guidance: classifier-free guidance weight.
        length: how each group's unit of length is solved; None as the run was trained.
        likelihood: probes for the bits per dimension of the held-out data; 0 leaves them out.
        seed: decides the noise, the same in every cell.
    """

    steps: tuple[int, ...] = (1, 2, 4, 16, 64)
    solvers: tuple[EmbeddedSolver, ...] = ()
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    depths: tuple[int, ...] = ()
    count: int = 1000
    batch_size: int = 250
    guidance: float = 1.0
    length: FixedSteps | Adaptive | None = None
    likelihood: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the counts."""
        if min(self.steps, default=1) < 1:
            raise InputError(f"steps must be positive numbers; got {self.steps}")
        if not self.plans:
            raise InputError("there is nothing to measure: give steps, or solvers and tolerances")
        if self.likelihood < 0:
            raise InputError(f"likelihood must be a number of probes; got {self.likelihood}")
        if self.batch_size < 1 or self.count < self.batch_size or self.count % self.batch_size:
            raise InputError(
                f"count must be a multiple of batch_size {self.batch_size}; got {self.count}"
            )

    @property
    def plans(self) -> tuple[FixedSteps | Adaptive, ...]:
        """How the time ODE is solved, one column of the map each."""
        fixed = [FixedSteps(steps=steps) for steps in self.steps]
        pairs = itertools.product(self.solvers, self.tolerances)
        return *fixed, *(Adaptive(rtol=tol, atol=tol, solver=name) for name, tol in pairs)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        depth: blocks run.
        time: how the time ODE was solved.
        accepted: time steps that were taken, on average over the pictures.
        rejected: time steps that were tried and thrown away, on average.
        evaluations: network evaluations per picture, on average.
        blocks: block evaluations per picture, on average.
        quality: of the pictures made.
        milliseconds: per picture, the median over batches, compilation apart.
    """

    depth: int
    time: FixedSteps | Adaptive
    accepted: float
    rejected: float
    evaluations: float
    blocks: float
    quality: Quality
    milliseconds: float


COUNTS = ("accepted", "rejected", "evaluations", "blocks")


def measure(model: DiT, judge: Judge, config: GridConfig) -> Iterator[Cell]:
    """Yield the cells of the map, depth by depth, as they are measured.

    Every program is compiled before its first cell is timed.

    Raises:
        SolveError: an adaptive plan ran out of steps.
    """
    noise, labels = draw_noise(model, config)
    first = slice(0, config.batch_size)
    for depth in config.depths or model.config.depths:
        compiled = set()
        for time in config.plans:
            if (kind := (type(time), time.solver)) not in compiled:
                _generate(model, noise[first], labels[first], time, depth, config)
                compiled.add(kind)
            images, stats, seconds = _generate(model, noise, labels, time, depth, config)
            yield Cell(
                depth=depth,
                time=time,
                **{name: float(np.mean(getattr(stats, name))) for name in COUNTS},
                quality=judge(images, labels),
                milliseconds=1e3 * statistics.median(seconds) / config.batch_size,
            )


def draw_noise(
    model: DiT, config: GridConfig
) -> tuple[Float[Array, "count height width channels"], Int[np.ndarray, " count"]]:
    """Return the noise and the labels of the map: classes in turn."""
    shape = (config.count, *model.config.image_shape)
    noise = jax.random.normal(jax.random.key(config.seed), shape)
    return noise, np.arange(config.count, dtype=np.int32) % model.config.num_classes


def _generate(
    model: DiT,
    noise: Float[Array, "count height width channels"],
    labels: Int[np.ndarray, " count"],
    time: FixedSteps | Adaptive,
    depth: int,
    config: GridConfig,
) -> tuple[Float[np.ndarray, "count height width channels"], SolveStats, Sequence[float]]:
    """Sample all pictures batch by batch; also return what they took and each batch's seconds."""
    images, seconds, taken = [], [], []
    options = Options(time=time, length=config.length, depth=depth, guidance=config.guidance)
    for start in range(0, len(noise), config.batch_size):
        part = slice(start, start + config.batch_size)
        inputs = jax.block_until_ready((noise[part], jnp.asarray(labels[part])))
        began = perf_counter()
        made, stats = sample_with_stats(model, *inputs, **options)
        images.append(np.asarray(made))
        seconds.append(perf_counter() - began)
        raise_failures(made, stats, time, config.length or model.config.length)
        taken.append(stats)
    return (
        np.concatenate(images),
        SolveStats(*map(np.concatenate, zip(*taken, strict=True))),
        seconds,
    )
