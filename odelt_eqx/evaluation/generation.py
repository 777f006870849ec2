"""Many pictures made batch by batch, accounted for and forgotten, from wherever one stopped."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.evaluation.tally import Tally
from odelt_eqx.files import replacing
from odelt_eqx.hosts import first_says, is_first
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.ode.time import SolveStats
from odelt_eqx.sampling import noise_of
from odelt_eqx.training.signals import StopSignals

SAVE_SECONDS = 30.0
"""How often what is made so far is saved."""

TIMED = 5
"""Batches at least that a latency is the median of."""

COUNTS = ("accepted", "rejected", "evaluations", "blocks")

Sampler = Callable[[Array, Array], tuple[Array, SolveStats]]
"""Noise and labels to images and what they took, both ready."""


@dataclasses.dataclass
class Generation:
    """What is known of pictures made so far.

    Args:
        tally: of their features.
        taken: sums over the pictures of what each took, in the order of `COUNTS`.
        seconds: what each batch took.
        shown: the first pictures, to be looked at.
    """

    tally: Tally
    taken: Float[np.ndarray, " counts"]
    seconds: list[float]
    shown: Float[np.ndarray, "shown height width channels"]

    @classmethod
    def begun(cls, count: int, config: DiTConfig) -> "Generation":
        """Return what is known of no pictures yet."""
        shown = np.zeros((0, *config.image_shape), np.float32)
        return cls(Tally.empty(count), np.zeros(len(COUNTS)), [], shown)

    def add(
        self, images: Float[np.ndarray, "batch h w c"], stats: SolveStats, seconds: float, show: int
    ) -> None:
        """Account for a batch of pictures, but for their features."""
        self.taken = self.taken + [np.sum(getattr(stats, name)[: len(images)]) for name in COUNTS]
        self.seconds.append(seconds)
        self.shown = np.concatenate([self.shown, images[: max(0, show - len(self.shown))]])

    def save(self, path: Path) -> None:
        """Write what `read` reads."""
        arrays = self.tally.arrays() | {
            "taken": self.taken,
            "seconds": np.asarray(self.seconds),
            "shown": self.shown,
        }
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    @classmethod
    def read(cls, path: Path) -> "Generation | None":
        """Return what was saved, or None where nothing of use was."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                tally = Tally.from_arrays(arrays)
                seconds = arrays["seconds"].tolist()
                return cls(tally, arrays["taken"], seconds, arrays["shown"])
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None


def inputs(
    config: DiTConfig, seed: int, start: int, size: int
) -> tuple[Float[Array, "size height width channels"], Int[Array, " size"]]:
    """Return noise and labels of the pictures from `start` on: classes in turn."""
    places = start + np.arange(size, dtype=np.int32)
    labels = jnp.asarray(places % config.num_classes)
    return jax.block_until_ready((noise_of(seed, places, config.image_shape), labels))


def generate(
    sampler: Sampler,
    judge: Judge,
    shape: DiTConfig,
    config: GridConfig,
    *,
    show: int,
    partial: Path,
    stop: StopSignals,
    advance: Callable[[int], object],
) -> Generation:
    """Make and judge pictures; go on from what `partial` holds, and leave it for next time.

    A batch that is not full is filled up with pictures that are not counted, so that one program
    makes them all. If there are few batches the first is repeated, for its time alone.

    Args:
        sampler: makes a batch.
        judge: looks at the pictures.
        shape: shape and classes of the pictures.
        config: how many, how many at once, and the seed of their noise.
        show: how many of the first are returned as they are.
        partial: file of what is made so far.
        stop: is asked after every batch whether to leave.
        advance: is told how many more are made.

    Raises:
        Interrupted: a signal asked for it; what is made is saved.
    """
    count, batch_size = config.count, config.batch_size
    made = (is_first() and Generation.read(partial)) or Generation.begun(count, shape)
    done = int(first_says(np.asarray(made.tally.count)))
    advance(done)
    saved = monotonic()
    for start in range(done, count, batch_size):
        images, stats, seconds = _timed(sampler, *inputs(shape, config.seed, start, batch_size))
        labels = np.arange(start, min(start + batch_size, count), dtype=np.int32)
        judge.add(made.tally, images, labels % shape.num_classes)
        made.add(np.asarray(images)[: len(labels)], stats, seconds, show)
        advance(len(labels))
        told = stop.agreed(waiting=True)
        if told or monotonic() - saved > SAVE_SECONDS:
            made.save(partial)
            saved = monotonic()
        if told:
            stop.leave(f"the same command goes on from {partial.parent}")
    for _ in range(TIMED - -(-count // batch_size)):
        made.seconds.append(_timed(sampler, *inputs(shape, config.seed, 0, batch_size))[2])
    return made


def _timed(sampler: Sampler, noise: Array, labels: Array) -> tuple[Array, SolveStats, float]:
    began = perf_counter()
    images, stats = sampler(noise, labels)
    return images, stats, perf_counter() - began
