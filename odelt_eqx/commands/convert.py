"""Convert a checkpoint of the reference, SiT or REPA to a run folder, or any to safetensors."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from odelt_eqx import cli
from odelt_eqx.config import TrainConfig
from odelt_eqx.interop.hub import is_on_hub
from odelt_eqx.training.weights import WeightFormat, convert


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights for a preset, changed by the options.

    Args:
        source: a pickle of the reference, a checkpoint of SiT or REPA (.pt or .safetensors), a run
            folder, a safetensors file, or hub:OWNER/NAME with one.
        target: a run folder to make, a path that ends in .safetensors, or hub:OWNER/NAME.
        config: the run that the weights will belong to.
        depth: keep only the blocks that the network runs at this depth.
        format: whose file the source is; by default that is told by its suffix and names.
        layout: of a safetensors file that is written: ours, or SiT's for a plain network.
    """

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]
    config: TrainConfig
    depth: int | None = None
    format: WeightFormat | None = None
    layout: Literal["odelt", "sit"] = "odelt"


def run(words: list[str]) -> None:
    """Read the arguments, convert, print where the result is."""
    _, config, words = cli.preset_of(words)
    args = cli.parse(Convert, config, words)
    card = ""
    if is_on_hub(args.target) and args.source.is_dir():
        from odelt_eqx.evaluation.report import describe_run  # which loads much that is not needed

        card = describe_run(args.source)
    convert(args.source, args.target, args.config, args.depth, args.format, args.layout, card)
    cli.print_results(args.target)
