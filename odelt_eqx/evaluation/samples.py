"""Pictures on request, from any run and with any solver on either axis."""

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from odelt_eqx.errors import InputError, SolveError
from odelt_eqx.evaluation.decoding import open_decoder
from odelt_eqx.evaluation.devices import on_all_devices
from odelt_eqx.evaluation.recommend import recommend
from odelt_eqx.files import replacing
from odelt_eqx.hosts import is_first
from odelt_eqx.images import save_png, sheet
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.ode.time import SolveStats
from odelt_eqx.sampling import (
    consistency_sample,
    invert,
    noise_of,
    sample_with_stats,
    trajectory,
)
from odelt_eqx.sampling.options import Options, raise_failures, setting
from odelt_eqx.training.checkpoint import run_config

STRIP_ROWS = 10
"""Pictures in a film strip."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Which pictures are drawn, and how.

    Args:
        labels: classes, dealt out in turn; all of them by default.
        count: number of pictures.
        seed: decides the noise.
        time: how the time ODE is solved over [0, 1]; None as the run's config says.
        length: how each group's unit of length is solved; None as the run was trained.
        depth: blocks to run, "full" for all, "plain" for the DiT without a length ODE.
        guidance: classifier-free guidance weight; 1 runs the labels alone, 0 no label.
        exit_tolerance: stop each network evaluation at the first edge of the length where the last
            group changed the output by less than this share of it.
        renoise: sample by predicting the image and adding noise again at each step, for models
            trained to be consistent, instead of following the flow.
        trajectory: rising times in [0, 1] whose states are drawn as a film strip.
        from_images: an NPZ file with `images` and `labels`, which are carried back to their noise
            first; then `labels`, if any are given, are what is made of that noise.
        budget_ms: milliseconds per picture: the plans, depth and guidance are those of the best row
            within it of the run's map, which scripts/evaluate.py measures.
        autoencoder: weights of the autoencoder that latents are decoded by, see
            `odelt_eqx.interop.load_autoencoder`; None where images are made.
        out: path of the pictures without suffix; RUN/samples by default.
    """

    labels: tuple[int, ...] = ()
    count: int = 100
    seed: int = 0
    time: FixedSteps | Adaptive | None = None
    length: FixedSteps | Adaptive | None = None
    depth: int | Literal["full", "plain"] = "full"
    guidance: float = 1.0
    exit_tolerance: float | None = None
    renoise: bool = False
    trajectory: tuple[float, ...] = ()
    from_images: Path | None = None
    budget_ms: float | None = None
    autoencoder: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check the count and what excludes each other."""
        if self.count < 1:
            raise InputError(f"count must be at least 1; got {self.count}")
        if self.renoise and (self.trajectory or self.from_images):
            raise InputError("renoise follows no flow: leave out trajectory and from_images")
        chosen = (self.time, self.length, self.depth, self.guidance) != (None, None, "full", 1.0)
        if self.budget_ms is not None and chosen:
            raise InputError("budget_ms chooses time, length, depth and guidance: leave them out")


def draw_samples(run: Path, config: SampleConfig) -> tuple[list[Path], SolveStats]:
    """Write pictures from a run as a PNG sheet and as NPZ arrays, and a film strip if asked for.

    The arrays are `images`, `labels`, `noise`, one for each of the statistics, with a trajectory
    `times` and `states`, and with an autoencoder `latents`, of which the images are. A picture
    whose solve ran out of steps is drawn as far as it got, with a warning that names it.

    Returns:
        The paths, and what each picture took on its way from the noise.

    Raises:
        InputError: the run, a label, the depth or the file of images does not exist or fit.
        SolveError: an adaptive plan ran out of steps for every picture.
    """
    with on_all_devices(run) as model:
        return _draw(model, run, config)


def _draw(model: DiT, run: Path, config: SampleConfig) -> tuple[list[Path], SolveStats]:
    options, decoder = _options(run, config), open_decoder(config.autoencoder, model.config)
    noise, labels = _start(model, config, options)
    if config.renoise:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        images, stats = consistency_sample(model, noise, labels, key, **options)
    else:
        images, stats = sample_with_stats(model, noise, labels, **options)
    try:
        plans = setting(model, noise, labels, options)
        raise_failures(images, stats, plans.time, plans.length)
    except SolveError as error:
        if (stats.time_failed | stats.length_failed).all():
            raise
        warnings.warn(f"these pictures are unfinished: {error}", stacklevel=2)
    arrays = {"images": images, "labels": labels, "noise": noise, **stats._asdict()}
    if config.autoencoder is not None:
        arrays |= {"latents": images, "images": decoder(images)}
    out = config.out or run / "samples"
    out.parent.mkdir(parents=True, exist_ok=True)
    picture, data, strip = (out.with_name(out.name + end) for end in (".png", ".npz", "-strip.png"))
    asked = len(config.labels) or model.config.num_classes
    columns = min(asked if 2 < asked <= 20 else 10, len(labels))
    save_png(sheet(np.asarray(arrays["images"]), columns), picture)
    paths = [picture, data]
    if config.trajectory:
        states = trajectory(model, noise, labels, config.trajectory, **options)
        arrays |= {"times": np.asarray(config.trajectory), "states": states}
        shown = np.asarray(states)[:, :STRIP_ROWS].swapaxes(0, 1)
        shown = decoder(shown.reshape(-1, *model.config.image_shape))
        save_png(sheet(shown, len(states)), strip)
        paths.append(strip)
    with replacing(data) as beside:
        np.savez(beside, **arrays)  # pyright: ignore[reportArgumentType]
    return paths, stats


def _options(run: Path, config: SampleConfig) -> Options:
    """Return how the network is run."""
    if config.budget_ms is not None:
        found = recommend(run, milliseconds=config.budget_ms)
        if is_first():
            print(f"note: {found}", file=sys.stderr)
        return found.options
    return Options(
        time=config.time or run_config(run).time,
        length=config.length,
        depth=None if config.depth == "plain" else config.depth,
        guidance=config.guidance,
        exit_tolerance=config.exit_tolerance,
    )


def _start(model: DiT, config: SampleConfig, options: Options) -> tuple[Array, Array]:
    """Return the noise to start from and the labels to ask for."""
    if config.from_images is None:
        labels = np.resize(config.labels or range(model.config.num_classes), config.count)
        noise = noise_of(config.seed, np.arange(config.count), model.config.image_shape)
        return noise, jnp.asarray(labels, jnp.int32)
    try:
        with np.load(config.from_images, allow_pickle=False) as file:
            images, own = jnp.asarray(file["images"], jnp.float32), jnp.asarray(file["labels"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{config.from_images} holds no images and labels to start from: {problem}"
        ) from None
    noise = invert(model, images, own.astype(jnp.int32), **options)
    labels = np.resize(config.labels, len(own)) if config.labels else own
    return noise, jnp.asarray(labels, jnp.int32)
