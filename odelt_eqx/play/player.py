"""A run's network, played: samples at what the dials say, from noise that is held still."""

import dataclasses
import io
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from odelt_eqx.condition import Classes
from odelt_eqx.errors import InputError, check_numbers, check_range
from odelt_eqx.evaluation.features import decode, decoded_shape, open_autoencoder
from odelt_eqx.evaluation.figures import COLUMNS, new_figure, plot_points
from odelt_eqx.evaluation.measure import condition_of
from odelt_eqx.evaluation.samples import class_names
from odelt_eqx.images import rgb, sheet, to_bytes
from odelt_eqx.noise import sample_keys, sample_noise
from odelt_eqx.parallel import make_mesh, place
from odelt_eqx.sampling import CompiledSamplers, SampleConfig, SolveStats, raise_failures
from odelt_eqx.training.load import load, run_config

IMAGES, POINTS = 20, 1000
"""Samples that are shown by default."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """What is played.

    Args:
        config: how the network is run.
        seed: decides the noise: the same whatever the other dials say.
        labels: classes in turn; all of them if there are none.

    Raises:
        InputError: the seed is negative, or a number is not of 32 bits.
    """

    config: SampleConfig = SampleConfig()
    seed: int = 0
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(self)
        check_range(self, "seed", least=0)


@dataclasses.dataclass(frozen=True)
class Played:
    """Samples, and what they took.

    Args:
        samples: images in about [-1, 1], or vectors.
        labels: their classes, by number.
        limit: half the width of the axes that show vectors.
        stats: what each sample took.
        milliseconds: for all of them, without compiling and decoding.
        compiled: seconds that compiling the program took; None if it was there.
    """

    samples: Float[np.ndarray, "count *shape"]
    labels: Int[np.ndarray, " count"]
    limit: float
    stats: SolveStats
    milliseconds: float
    compiled: float | None

    def images(self) -> list[bytes]:
        """Return each image as PNG; of vectors, one scatter plot."""
        if self.samples.ndim == 4:
            return [_png(image) for image in to_bytes(rgb(self.samples))]
        return [self.sheet()]

    def sheet(self) -> bytes:
        """Return all that is shown as one PNG."""
        if self.samples.ndim == 4:
            return _png(sheet(self.samples, min(len(self.samples), COLUMNS)))
        figure = new_figure(5, 5, layout=None)
        axis = figure.add_axes((0, 0, 1, 1), frameon=False)
        plot_points(axis, self.samples, self.labels, self.limit)
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=110)
        return buffer.getvalue()


class Player:
    """The network of a run, with a compiled program for each kind of setting that was played.

    It may be called from any thread; one call runs at a time.
    """

    def __init__(self, run: Path, count: int | None = None, autoencoder: str | None = None):
        """Load the EMA weights; an InputError if the folder is not a run with a checkpoint.

        Args:
            run: run folder.
            count: number of samples that are shown; 20 images or 1,000 vectors by default.
            autoencoder: weights of the autoencoder that decodes latents, see
                `odelt_eqx.interop.load_autoencoder`; None if samples are images or vectors.
        """
        self.run, self.trained = run, run_config(run)
        self._mesh, self._lock = make_mesh(self.trained.sharding), threading.Lock()
        with jax.set_mesh(self._mesh):
            self.network = place(load(run), self._mesh)
        self._autoencoder = open_autoencoder(autoencoder, self.network.shape)
        self.shape = decoded_shape(self._autoencoder, self.network.shape)
        default = IMAGES if len(self.shape) == 3 else POINTS
        self.count = default if count is None else count
        kind = self.network.condition_type
        self.guided = isinstance(kind, Classes) and kind.learned == "both"
        asked = isinstance(kind, Classes) and kind.learned != "null"
        self.class_names = class_names(run, self.network) if asked else ()
        self._samplers = CompiledSamplers(self.network)

    def is_compiled(self, dials: Dials) -> bool:
        """Whether there is a program for what the dials say; an InputError as `play` raises it.

        It is answered while another call compiles.
        """
        with jax.set_mesh(self._mesh):
            return self._samplers.has(*self._inputs(dials)[1])

    def play(self, dials: Dials) -> Played:
        """Return the samples at what the dials say.

        Raises:
            InputError: the setting or a label does not fit the network.
            SolveError: an adaptive plan ran out of steps.
        """
        with self._lock, jax.set_mesh(self._mesh):
            labels, inputs = self._inputs(dials)
            sampler, compiled = self._samplers.get(*inputs)
            started = perf_counter()
            samples, stats = sampler(*inputs)
            milliseconds = 1e3 * (perf_counter() - started)
            failed = (stats.time_failed, stats.length_failed)
            raise_failures(samples, self.network, dials.config, *failed)
            decoded = decode(self._autoencoder, samples)
        limit = float(np.abs(inputs[0]).max())
        return Played(decoded, labels, limit, stats, milliseconds, compiled)

    def _inputs(self, dials: Dials) -> tuple[Int[np.ndarray, " count"], tuple[Any, ...]]:
        """Return the labels of what the dials say, and what a sampler takes."""
        self.trained.check_sampling(dials.config.diffusion)
        classes, indices = len(self.class_names), np.arange(self.count, dtype=np.int32)
        if dials.labels and not classes:
            raise InputError("this network takes no classes: leave out labels")
        if wrong := [label for label in dials.labels if not 0 <= label < classes]:
            raise InputError(f"labels must lie between 0 and {classes - 1}; got {wrong[0]}")
        labels = np.resize(dials.labels or range(classes or 1), self.count).astype(np.int32)
        noise = sample_noise(dials.seed, indices, self.network.shape)
        condition, keys = condition_of(self.network, labels), sample_keys(dials.seed, indices)
        jax.block_until_ready((noise, condition, keys))
        return labels, (noise, condition, dials.config, keys)


def _png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()
