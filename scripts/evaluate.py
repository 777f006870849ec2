"""Measure the steps x depth map and the held-out losses of a run, and write a report."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.evaluation.choice import FeaturesConfig, Pixels
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.validation import validate
from odelt_eqx.hosts import Hosts


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a run: its pictures at every depth (map, report), its losses (validation).

    Args:
        run: run folder.
        grid: which cells are measured, and how.
        features: what pictures are compared by.
        out: folder of the results; the run's own by default.
        hosts: the processes that work together.
    """

    run: tyro.conf.Positional[Path]
    grid: Annotated[GridConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=GridConfig
    )
    features: FeaturesConfig = dataclasses.field(default_factory=Pixels)
    out: Path | None = None
    hosts: Hosts = Hosts()


def run() -> None:
    """Read the command line, measure, print where the results are."""
    args = tyro.cli(Evaluate)
    args.hosts.join()
    command = shlex.join(["python", *sys.argv])
    paths = evaluate(args.run, args.grid, args.out, features=args.features, command=command)
    cli.tell(*paths, *validate(args.run, args.out))


if __name__ == "__main__":
    cli.main(run)
