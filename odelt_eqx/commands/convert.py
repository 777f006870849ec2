"""Convert a checkpoint of the reference, SiT or REPA to a run folder, or any to safetensors.

Of a run with snapshots of its averages, the average of any width.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from odelt_eqx import cli
from odelt_eqx.config import TrainConfig
from odelt_eqx.errors import InputError
from odelt_eqx.interop.hub import is_on_hub
from odelt_eqx.objective import TYPES
from odelt_eqx.presets import PRESETS, of_type
from odelt_eqx.training.checkpoint import CONFIG
from odelt_eqx.training.load import run_config
from odelt_eqx.training.weights import WeightFormat, convert


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights for a preset, changed by the options.

    Where the first word is no preset but a run folder, that is the source, and its config is kept.
    Words behind a preset may name other training types, as those of `train`.

    Args:
        source: a pickle of the reference, a checkpoint of SiT or REPA (.pt or .safetensors), a run
            folder, a safetensors file, or hub:OWNER/NAME with one.
        target: a run folder to make, a path that ends in .safetensors, or hub:OWNER/NAME.
        config: the run that the weights will belong to.
        depth: keep only the blocks that the network runs at this depth.
        format: whose file the source is; by default that is told by its suffix and names.
        layout: of a safetensors file that is written: ours, or SiT's for a plain network.
        average_width: the average of this width, made of a run's snapshots (--snapshot-every of
            training), takes the place of the EMA weights: 0.05 is one over the last steps, 0.25 one
            over nearly all.
        average_step: the step, one with a snapshot, at which that average ends; the last one by
            default.
    """

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]
    config: TrainConfig
    depth: int | None = None
    format: WeightFormat | None = None
    layout: Literal["odelt", "sit"] = "odelt"
    average_width: float | None = None
    average_step: int | None = None


def run(words: list[str]) -> None:
    """Read the arguments, convert, print where the result is."""
    if words and words[0] not in PRESETS and (Path(words[0]) / CONFIG).is_file():
        config = run_config(words[0])
    else:
        _, config, words = cli.preset_of(words)
        while words and words[0] in TYPES and not Path(words[0]).exists():
            config, words = of_type(config, words[0]), words[1:]
    args = cli.parse(Convert, config, words)
    card = ""
    if is_on_hub(args.target) and args.source.is_dir():
        from odelt_eqx.evaluation.report import describe_run  # which loads much that is not needed

        card = describe_run(args.source, args.depth is None and args.average_width is None)
    average = None
    if args.average_width is not None:
        average = args.average_width, args.average_step
    elif args.average_step is not None:
        raise InputError("--average-step is that of an average: give --average-width as well")
    options = (args.depth, args.format, args.layout, card, average)
    convert(args.source, args.target, args.config, *options)
    cli.print_results(args.target)
