"""Draw pictures from a run with any solver on either axis."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

import odelt_eqx as odelt
from odelt_eqx import cli
from odelt_eqx.evaluation.pictures import save_tiles
from odelt_eqx.files import replacing


@dataclasses.dataclass(frozen=True)
class Sample:
    """Write pictures from a run as PNG and NPZ.

    Args:
        run: run folder.
        labels: classes, dealt out in turn; all of them by default.
        count: number of pictures.
        seed: decides the noise.
        time: how the time ODE is solved over [0, 1].
        length: how each group's unit of length is solved.
        depth: blocks to run, "full" for all, "plain" for the DiT without a length ODE.
        guidance: classifier-free guidance weight; 1 runs the labels alone, 0 no label.
        out: path of the pictures without suffix; RUN/samples by default.
    """

    run: tyro.conf.Positional[Path]
    labels: tuple[int, ...] = ()
    count: int = 100
    seed: int = 0
    time: odelt.FixedSteps | odelt.Adaptive = dataclasses.field(
        default_factory=lambda: odelt.FixedSteps(16)
    )
    length: odelt.FixedSteps | odelt.Adaptive = dataclasses.field(default_factory=odelt.FixedSteps)
    depth: int | Literal["full", "plain"] = "full"
    guidance: float = 1.0
    out: Path | None = None


def run() -> None:
    """Read the command line, sample, print where the pictures are."""
    args = tyro.cli(Sample)
    if args.count < 1:
        raise odelt.InputError(f"count must be at least 1; got {args.count}")
    model = odelt.load(args.run)
    labels = np.resize(args.labels or range(model.config.num_classes), args.count).astype(np.int32)
    noise = jax.random.normal(jax.random.key(args.seed), (args.count, *model.config.image_shape))
    images, stats = odelt.sample_with_stats(
        model,
        noise,
        jax.numpy.asarray(labels),
        time=args.time,
        length=args.length,
        depth=None if args.depth == "plain" else args.depth,
        guidance=args.guidance,
    )
    out = args.out or args.run / "samples"
    picture, arrays = (out.with_name(out.name + suffix) for suffix in (".png", ".npz"))
    save_tiles(np.asarray(images), min(len(args.labels) or 10, args.count), picture)
    with replacing(arrays) as beside:
        np.savez(beside, images=images, labels=labels)
    print(f"{stats.steps} time steps, {stats.evaluations} network evaluations per picture")
    print(picture, arrays, sep="\n")


if __name__ == "__main__":
    cli.main(run)
