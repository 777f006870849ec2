"""Write the reference statistics of a data set, which Fréchet distances are taken to."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.evaluation.choice import FeaturesConfig, Pixels
from odelt_eqx.evaluation.reference import ReferenceConfig, save_reference
from odelt_eqx.hosts import Hosts
from odelt_eqx.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Stats:
    """Write mu and sigma of a data set's features as an .npz file, as the published code reads it.

    Args:
        out: the file to write.
        config: whose statistics.
        features: what pictures are compared by.
        hosts: the processes that work together.
    """

    out: tyro.conf.Positional[Path]
    config: Annotated[ReferenceConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ReferenceConfig
    )
    features: FeaturesConfig = dataclasses.field(default_factory=Pixels)
    hosts: Hosts = Hosts()


def run() -> None:
    """Read the command line, go through the data, print how many pictures went in and where."""
    args = tyro.cli(Stats)
    args.hosts.join()
    with jax.set_mesh(make_mesh("dp")):
        found = save_reference(args.config, args.out, args.features)
    cli.tell(f"{found.count} pictures, {found.mean.size} features ({found.features})", args.out)


if __name__ == "__main__":
    cli.main(run)
