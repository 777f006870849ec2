"""Convert a checkpoint of the reference to a run folder, or any network to safetensors."""

import dataclasses
from pathlib import Path

import tyro

from odelt_eqx import cli
from odelt_eqx.config import TrainConfig
from odelt_eqx.training.weights import convert


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights for a preset, changed by the options.

    Args:
        source: a pickle of the reference, a run folder, or a safetensors file.
        target: a run folder to make, or a path that ends in .safetensors.
        config: the run that the weights will belong to.
        depth: keep only the blocks that the network runs at this depth.
    """

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]
    config: TrainConfig
    depth: int | None = None


def run() -> None:
    """Read the command line, convert, print where the result is."""
    _, config, words = cli.preset_of_command_line()
    default = Convert(tyro.MISSING, tyro.MISSING, config)
    args = cli.parse(default, words)
    convert(args.source, args.target, args.config, args.depth)
    cli.print_results(args.target)


if __name__ == "__main__":
    cli.main(run)
