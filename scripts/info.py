"""Tell what a run is and how far it is, from its folder; it may still be going on."""

import dataclasses
from pathlib import Path

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.training.info import describe


@dataclasses.dataclass(frozen=True)
class Info:
    """Print a run's size and FLOPs by depth, its checkpoints, latest figures and config.

    Args:
        run: run folder.
    """

    run: tyro.conf.Positional[Path]


def run() -> None:
    """Read the command line and print what the folder tells."""
    jax.config.update("jax_platforms", "cpu")  # the run may hold the accelerator
    print(describe(tyro.cli(Info).run))


if __name__ == "__main__":
    cli.main(run)
