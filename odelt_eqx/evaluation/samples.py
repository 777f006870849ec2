"""Pictures on request, from any run and with any solver on either axis."""

import dataclasses
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.pictures import save_tiles
from odelt_eqx.files import replacing
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.sampling import SampleStats, invert, sample_with_stats, trajectory
from odelt_eqx.training.checkpoint import load

STRIP_ROWS = 10
"""Pictures in a film strip."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Which pictures are drawn, and how.

    Args:
        labels: classes, dealt out in turn; all of them by default.
        count: number of pictures.
        seed: decides the noise.
        time: how the time ODE is solved over [0, 1].
        length: how each group's unit of length is solved.
        depth: blocks to run, "full" for all, "plain" for the DiT without a length ODE.
        guidance: classifier-free guidance weight; 1 runs the labels alone, 0 no label.
        trajectory: rising times in [0, 1] whose states are drawn as a film strip.
        from_images: an NPZ file with `images` and `labels`, which are carried back to their noise
            first; then `labels`, if any are given, are what is made of that noise.
        out: path of the pictures without suffix; RUN/samples by default.
    """

    labels: tuple[int, ...] = ()
    count: int = 100
    seed: int = 0
    time: FixedSteps | Adaptive = dataclasses.field(default_factory=lambda: FixedSteps(steps=16))
    length: FixedSteps | Adaptive = dataclasses.field(default_factory=FixedSteps)
    depth: int | Literal["full", "plain"] = "full"
    guidance: float = 1.0
    trajectory: tuple[float, ...] = ()
    from_images: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check the count."""
        if self.count < 1:
            raise InputError(f"count must be at least 1; got {self.count}")


def draw_samples(run: Path, config: SampleConfig) -> tuple[list[Path], SampleStats]:
    """Write pictures from a run as a PNG sheet and as NPZ arrays, and a film strip if asked for.

    The arrays are `images`, `labels`, `noise`, and with a trajectory `times` and `states`.

    Returns:
        The paths, and what each picture cost on its way from the noise.

    Raises:
        InputError: the run, a label, the depth or the file of images does not exist or fit.
        SolveError: an adaptive plan ran out of steps.
    """
    model = load(run)
    plans = {
        "time": config.time,
        "length": config.length,
        "depth": None if config.depth == "plain" else config.depth,
        "guidance": config.guidance,
    }
    noise, labels = _start(model, config, plans)
    images, stats = sample_with_stats(model, noise, labels, **plans)
    arrays = {"images": images, "labels": labels, "noise": noise}
    out = config.out or run / "samples"
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet, data, strip = (out.with_name(out.name + end) for end in (".png", ".npz", "-strip.png"))
    asked = len(config.labels) or model.config.num_classes
    columns = min(asked if 2 < asked <= 20 else 10, len(labels))
    save_tiles(np.asarray(images), columns, sheet)
    paths = [sheet, data]
    if config.trajectory:
        states = trajectory(model, noise, labels, config.trajectory, **plans)
        arrays |= {"times": np.asarray(config.trajectory), "states": states}
        shown = np.asarray(states)[:, :STRIP_ROWS].swapaxes(0, 1)
        save_tiles(shown.reshape(-1, *model.config.image_shape), len(states), strip)
        paths.append(strip)
    with replacing(data) as beside:
        np.savez(beside, **arrays)  # pyright: ignore[reportArgumentType]
    return paths, stats


def _start(model: DiT, config: SampleConfig, plans: dict[str, Any]) -> tuple[Array, Array]:
    """Return the noise to start from and the labels to ask for."""
    if config.from_images is None:
        labels = np.resize(config.labels or range(model.config.num_classes), config.count)
        shape = (config.count, *model.config.image_shape)
        noise = jax.random.normal(jax.random.key(config.seed), shape)
        return noise, jnp.asarray(labels, jnp.int32)
    try:
        with np.load(config.from_images, allow_pickle=False) as file:
            images, own = jnp.asarray(file["images"], jnp.float32), jnp.asarray(file["labels"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{config.from_images} holds no images and labels to start from: {problem}"
        ) from None
    noise = invert(model, images, own.astype(jnp.int32), **plans)
    labels = np.resize(config.labels, len(own)) if config.labels else own
    return noise, jnp.asarray(labels, jnp.int32)
