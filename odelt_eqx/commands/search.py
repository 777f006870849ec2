"""Search the settings of a run that no other beats in cost and quality."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.entry import typed
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.search import SPACE, SearchConfig, search
from odelt_eqx.parallel import Processes


@dataclasses.dataclass(frozen=True)
class Search:
    """Search solver, grid and number of time steps, depth and guidance of a run under a budget.

    Args:
        run: run folder.
        space: the settings that are tried, and the samples of a row that is measured to the end.
        minutes: about how long it takes; the same command goes on from what it has measured.
        first: samples of a row when it is first tried.
        features: what samples are compared by, besides a second judge.
        out: folder of the results; RUN/search by default.
        processes: the processes of a distributed run.
    """

    run: tyro.conf.Positional[Path]
    space: Annotated[GridConfig, tyro.conf.arg(name="")] = SPACE
    minutes: float = SearchConfig.minutes
    first: int = SearchConfig.first
    features: FeaturesConfig = dataclasses.field(default_factory=Pixels)
    out: Path | None = None
    processes: Processes = Processes()


def run(words: list[str]) -> None:
    """Read the arguments, search, print where the results are."""
    args = cli.arguments(Search, words)
    args.processes.join()
    config = SearchConfig(args.space, args.minutes, args.first)
    command = typed("search", *words)
    paths = search(args.run, config, args.out, features=args.features, command=command)
    cli.print_results(*paths)
