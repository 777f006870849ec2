"""The map of what a model can do: quality and cost over time steps x depth."""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.quality import Judge, Quality
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.sampling import sample_with_stats


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Which cells are measured, and how.

    Args:
        steps: numbers of Euler steps in time.
        depths: depths in blocks; none given means all that the model has.
        count: pictures per cell, classes in turn.
        batch_size: pictures sampled at once; latency is per picture of such a batch.
        guidance: classifier-free guidance weight.
        length: how each group's unit of length is solved.
        seed: decides the noise, the same in every cell.
    """

    steps: tuple[int, ...] = (1, 2, 4, 16, 64)
    depths: tuple[int, ...] = ()
    count: int = 1000
    batch_size: int = 250
    guidance: float = 1.0
    length: FixedSteps | Adaptive = dataclasses.field(default_factory=FixedSteps)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the counts."""
        if not self.steps or min(self.steps) < 1:
            raise InputError(f"steps must be one or more positive numbers; got {self.steps}")
        if self.batch_size < 1 or self.count < self.batch_size or self.count % self.batch_size:
            raise InputError(
                f"count must be a multiple of batch_size {self.batch_size}; got {self.count}"
            )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        depth: blocks run.
        steps: Euler steps in time.
        evaluations: network evaluations per picture.
        quality: of the pictures made.
        milliseconds: per picture, the median over batches, compilation apart.
    """

    depth: int
    steps: int
    evaluations: int
    quality: Quality
    milliseconds: float


def measure(model: DiT, judge: Judge, config: GridConfig) -> Iterator[Cell]:
    """Yield the cells of the map, depth by depth, as they are measured.

    Each depth is compiled once, before its first cell is timed.
    """
    depths = config.depths or model.config.depths
    noise, labels = draw_noise(model, config)
    for depth in depths:
        _generate(model, noise[: config.batch_size], labels[: config.batch_size], 1, depth, config)
        for steps in config.steps:
            images, evaluations, seconds = _generate(model, noise, labels, steps, depth, config)
            yield Cell(
                depth=depth,
                steps=steps,
                evaluations=evaluations,
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
    steps: int,
    depth: int,
    config: GridConfig,
) -> tuple[Float[np.ndarray, "count height width channels"], int, Sequence[float]]:
    """Sample all pictures batch by batch; also return evaluations and the seconds of each batch."""
    images, seconds, evaluations = [], [], 0
    for start in range(0, len(noise), config.batch_size):
        part = slice(start, start + config.batch_size)
        inputs = jax.block_until_ready((noise[part], jnp.asarray(labels[part])))
        began = time.perf_counter()
        made, stats = sample_with_stats(
            model,
            *inputs,
            time=FixedSteps(steps=steps),
            length=config.length,
            depth=depth,
            guidance=config.guidance,
        )
        images.append(np.asarray(made))
        seconds.append(time.perf_counter() - began)
        evaluations = stats.evaluations
    return np.concatenate(images), evaluations, seconds
