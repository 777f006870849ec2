"""Measure the grid of a run over time steps and depths, and its held-out losses."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.entry import typed
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.validation import validate
from odelt_eqx.parallel import Processes


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure samples of a run over time steps and depths (grid, report), and its held-out losses.

    Args:
        run: run folder.
        grid: which rows are measured, and how.
        features: what samples are compared by.
        out: folder of the results; the run's own by default.
        processes: the processes of a distributed run.
    """

    run: tyro.conf.Positional[Path]
    grid: Annotated[GridConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=GridConfig
    )
    features: FeaturesConfig = dataclasses.field(default_factory=Pixels)
    out: Path | None = None
    processes: Processes = Processes()


def run(words: list[str]) -> None:
    """Read the arguments, measure, print where the results are."""
    args = cli.arguments(Evaluate, words)
    args.processes.join()
    command = typed("evaluate", *words)
    paths = evaluate(args.run, args.grid, args.out, features=args.features, command=command)
    cli.print_results(*paths, *validate(args.run, args.out))
