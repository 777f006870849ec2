"""Draw pictures from a run with any solver on either axis."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.evaluation.samples import SampleConfig, draw_samples
from odelt_eqx.hosts import Hosts


@dataclasses.dataclass(frozen=True)
class Sample:
    """Write pictures from a run as PNG and NPZ.

    Args:
        run: run folder.
        config: which pictures, and how.
        hosts: the processes that work together.
    """

    run: tyro.conf.Positional[Path]
    config: Annotated[SampleConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=SampleConfig
    )
    hosts: Hosts = Hosts()


def run() -> None:
    """Read the command line, sample, print what it cost and where the pictures are."""
    args = tyro.cli(Sample)
    args.hosts.join()
    paths, stats = draw_samples(args.run, args.config)
    for name, values in stats.counts.items():
        low, high = min(values), max(values)
        cli.tell(f"{name} per picture: {low:g}" + (f" to {high:g}" if high > low else ""))
    cli.tell(*paths)


if __name__ == "__main__":
    cli.main(run)
