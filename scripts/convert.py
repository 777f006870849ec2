"""Turn a checkpoint of the reference into a run folder, or any network into safetensors."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.config import TrainConfig
from odelt_eqx.training.convert import convert


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights for a preset, changed by the options.

    Args:
        source: a pickle of the reference, a run folder, or a safetensors file.
        target: a run folder to make, or a path that ends in .safetensors.
        config: the run that the weights are to belong to.
        depth: keep only the blocks that the network runs at this depth.
    """

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    depth: int | None = None


def run() -> None:
    """Read the command line, convert, print where the result is."""
    _, config, words = cli.preset_of_command_line()
    default = Convert(tyro.MISSING, tyro.MISSING, config)
    args = tyro.cli(Convert, default=default, args=words)
    convert(args.source, args.target, args.config, args.depth)
    print(args.target)


if __name__ == "__main__":
    cli.main(run)
