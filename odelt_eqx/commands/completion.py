"""Complete the commands and their options in a shell."""

import dataclasses
import functools
import operator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from odelt_eqx import cli
from odelt_eqx.commands.classifier import Classifier
from odelt_eqx.commands.convert import Convert
from odelt_eqx.commands.evaluate import Evaluate
from odelt_eqx.commands.info import Info
from odelt_eqx.commands.play import Play
from odelt_eqx.commands.prepare import Prepare
from odelt_eqx.commands.sample import Sample
from odelt_eqx.commands.search import Search
from odelt_eqx.commands.stats import Stats
from odelt_eqx.commands.train import Train
from odelt_eqx.presets import preset


@dataclasses.dataclass(frozen=True)
class Completion:
    """Print a script that completes commands and their options in a shell.

    In bash `source <(odelt completion bash)`, in fish `odelt completion fish | source`, in zsh
    `odelt completion zsh > FOLDER/_odelt` with a folder of `$fpath`.

    Args:
        shell: the shell: bash, zsh or fish.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]


def run(words: list[str]) -> None:
    """Read the arguments, print the script."""
    shell = cli.arguments(Completion, words).shell
    config = preset("digits")
    kinds = [
        cli.of_config(Train, config, run=Path("runs/digits")),
        Sample,
        Evaluate,
        Search,
        Play,
        Info,
        Prepare,
        cli.of_config(Convert, config),
        Classifier,
        Stats,
        Completion,
    ]
    named = [Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())] for kind in kinds]
    every: Any = functools.reduce(operator.or_, named)
    asked = ["--tyro-print-completion", shell]
    tyro.cli(every, prog="odelt", args=asked, config=cli.ANY_ORDER)
