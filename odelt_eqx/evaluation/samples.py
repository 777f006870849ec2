"""Pictures on request, from any run and with any solver on either axis."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.pictures import save_tiles
from odelt_eqx.files import replacing
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.sampling import SampleStats, sample_with_stats
from odelt_eqx.training.checkpoint import load


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
        out: path of the pictures without suffix; RUN/samples by default.
    """

    labels: tuple[int, ...] = ()
    count: int = 100
    seed: int = 0
    time: FixedSteps | Adaptive = dataclasses.field(default_factory=lambda: FixedSteps(steps=16))
    length: FixedSteps | Adaptive = dataclasses.field(default_factory=FixedSteps)
    depth: int | Literal["full", "plain"] = "full"
    guidance: float = 1.0
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check the count."""
        if self.count < 1:
            raise InputError(f"count must be at least 1; got {self.count}")


def draw_samples(run: Path, config: SampleConfig) -> tuple[list[Path], SampleStats]:
    """Write pictures from a run as a PNG sheet and as NPZ arrays `images` and `labels`.

    Returns:
        The two paths, and what each picture cost.

    Raises:
        InputError: the run, a label or the depth does not exist.
        SolveError: an adaptive plan ran out of steps.
    """
    model = load(run)
    classes = model.config.num_classes
    labels = np.resize(config.labels or range(classes), config.count).astype(np.int32)
    shape = (config.count, *model.config.image_shape)
    images, stats = sample_with_stats(
        model,
        jax.random.normal(jax.random.key(config.seed), shape),
        jnp.asarray(labels),
        time=config.time,
        length=config.length,
        depth=None if config.depth == "plain" else config.depth,
        guidance=config.guidance,
    )
    out = config.out or run / "samples"
    sheet, arrays = (out.with_name(out.name + suffix) for suffix in (".png", ".npz"))
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = min(len(config.labels) or classes, config.count, 20)
    save_tiles(np.asarray(images), columns, sheet)
    with replacing(arrays) as beside:
        np.savez(beside, images=images, labels=labels)
    return [sheet, arrays], stats
