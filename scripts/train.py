"""Train a model, then draw its samples and measure its steps x depth table."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.config import TrainConfig
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.validation import validate
from odelt_eqx.hosts import Hosts
from odelt_eqx.objective import TRAIN_TYPES
from odelt_eqx.presets import PRESETS
from odelt_eqx.training.loop import train


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a preset, changed by any of the options below, and evaluate it.

    Args:
        config: the training run.
        run: run folder; runs/PRESET or runs/PRESET-TYPE by default.
        resume: go on from the newest checkpoint in the run folder.
        overwrite: delete the run in the run folder first.
        hosts: the processes that train together.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    run: Path
    resume: bool = False
    overwrite: bool = False
    hosts: Hosts = Hosts()


def run() -> None:
    """Read the command line, train, evaluate, print where the results are."""
    name, config, words = cli.run_of_command_line()
    default = Train(config=config, run=Path("runs") / name)
    description = (
        f"Train a preset ({', '.join(PRESETS)}), by another training type if a second word names "
        f"one ({', '.join(TRAIN_TYPES)}), changed by the options, and evaluate it."
    )
    args = tyro.cli(Train, default=default, args=words, description=description)
    args.hosts.join()
    train(args.config, args.run, resume=args.resume, overwrite=args.overwrite)
    command = f"python scripts/evaluate.py {args.run}"
    cli.tell(*evaluate(args.run, GridConfig(), command=command), *validate(args.run))


if __name__ == "__main__":
    cli.main(run)
