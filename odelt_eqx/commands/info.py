"""Describe a run from its folder, while it trains or later."""

import dataclasses
from pathlib import Path

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.training.info import describe


@dataclasses.dataclass(frozen=True)
class Info:
    """Print a run's size and FLOPs by depth, its checkpoints, latest metrics, data and config.

    Args:
        run: run folder.
    """

    run: tyro.conf.Positional[Path]


def run(words: list[str]) -> None:
    """Read the arguments and print the description."""
    jax.config.update("jax_platforms", "cpu")  # the run may hold the accelerator
    cli.print_results(describe(cli.arguments(Info, words).run))
