"""Generate samples of a run, with any solver on either axis."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.entry import typed
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.samples import SampleRequest, save_samples
from odelt_eqx.parallel import Processes
from odelt_eqx.sampling import SampleConfig
from odelt_eqx.training.checkpoint import CONFIG
from odelt_eqx.training.load import run_config


@dataclasses.dataclass(frozen=True)
class Sample:
    """Write samples of a run as PNG and NPZ.

    Args:
        run: run folder; its config has the defaults of how the network is run.
        request: which samples.
        config: how the network is run.
        processes: the processes of a distributed run.
    """

    run: tyro.conf.Positional[Path]
    request: Annotated[SampleRequest, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=SampleRequest
    )
    config: Annotated[SampleConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=SampleConfig
    )
    processes: Processes = Processes()


def run(words: list[str]) -> None:
    """Read the arguments, sample, print what it took and where the samples are."""
    run = next((Path(word) for word in words if (Path(word) / CONFIG).is_file()), None)
    config = SampleConfig() if run is None else run_config(run).sample
    args = cli.arguments(cli.with_defaults(Sample, config=config), words)
    if run not in (None, args.run):
        raise InputError(f"give the run folder first: {typed('sample', args.run)} ...")
    args.processes.join()
    paths, stats = save_samples(args.run, args.request, args.config)
    for name, values in stats.counts.items():
        low, high = min(values), max(values)
        cli.print_results(f"{name} per sample: {low:g}" + (f" to {high:g}" if high > low else ""))
    cli.print_results(*paths)
