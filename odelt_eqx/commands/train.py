"""Train a preset and evaluate it over a grid of time steps and depths."""

import dataclasses
from pathlib import Path
from time import monotonic

from odelt_eqx import cli
from odelt_eqx.config import TrainConfig
from odelt_eqx.entry import typed
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.validation import validate
from odelt_eqx.objective import DEPTH_TYPES, STATE_TYPES, TRAIN_TYPES
from odelt_eqx.parallel import Processes
from odelt_eqx.presets import PRESETS
from odelt_eqx.training.load import run_config
from odelt_eqx.training.train import train

EVALUATION = 300
"""Seconds that the evaluation may take, if a tenth of the training is less."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a preset, changed by the options below, and evaluate it.

    Args:
        config: the training run.
        run: run folder; runs/PRESET or runs/PRESET-TYPE by default.
        resume: continue from the newest checkpoint in the run folder.
        overwrite: delete the run in the run folder first.
        evaluate: measure the grid of the trained network, in at most five minutes or a tenth of the
            training; `odelt evaluate` measures the rest, or all of it later.
        processes: the processes of a distributed run.
    """

    config: TrainConfig
    run: Path
    resume: bool = False
    overwrite: bool = False
    evaluate: bool = True
    processes: Processes = Processes()


def run(words: list[str]) -> None:
    """Read the arguments, train, evaluate, print where the results are."""
    given = words
    name, config, words = cli.run_of(words)
    description = (
        f"Train a preset ({', '.join(PRESETS)}), with other training types if the next words name "
        f"them, for the time axis ({', '.join(TRAIN_TYPES)}), for every depth "
        f"({', '.join(DEPTH_TYPES)}) or for hidden states besides ({', '.join(STATE_TYPES)}), "
        "changed by the options, and evaluate it."
    )
    with cli.hint_at_names(given[: len(given) - len(words)] or ["digits"], words):
        args = cli.parse(Train, config, words, description, run=Path("runs") / name)
    args.processes.join()
    config = args.config
    if args.resume:
        config = cli.follow_run(config, run_config(args.run), words)
    elif name.split("-")[0] == "folder":
        config = cli.follow_folder(config, words)
    else:
        config = cli.follow_data(config, words)
    started = monotonic()
    train(config, args.run, resume=args.resume, overwrite=args.overwrite)
    if not args.evaluate:
        cli.print_results(args.run)
        return
    trained = monotonic()
    seconds = max(EVALUATION, (trained - started) / 10)
    paths = evaluate(args.run, GridConfig(), command=typed("evaluate", args.run), seconds=seconds)
    seconds -= monotonic() - trained
    cli.print_results(*paths, *validate(args.run, seconds=seconds))
