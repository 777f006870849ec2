"""Write the statistics of a data set, to which Fréchet distances are taken."""

import dataclasses
from pathlib import Path

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.data import Data, Digits
from odelt_eqx.data.source import Split
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels
from odelt_eqx.evaluation.metrics import compute_statistics, save_statistics
from odelt_eqx.files import check_writable
from odelt_eqx.parallel import Processes, make_mesh, on_main_process


@dataclasses.dataclass(frozen=True)
class Stats:
    """Write mean and covariance of a data set's features as `mu` and `sigma` of an .npz file.

    Those of Inception's spatial features are `mu_s` and `sigma_s`.

    Args:
        out: the file to write.
        data: the data set.
        split: which part of it.
        batch_size: examples in memory at a time.
        features: what samples are compared by.
        processes: the processes of a distributed run.
    """

    out: tyro.conf.Positional[Path]
    data: Data = Digits()
    split: Split = "train"
    batch_size: int = 250
    features: FeaturesConfig = dataclasses.field(default_factory=Pixels)
    processes: Processes = Processes()


def run(words: list[str]) -> None:
    """Read the arguments, compute the statistics, print what they are of and where they are."""
    args = cli.arguments(Stats, words)
    args.processes.join()
    on_main_process(lambda: check_writable(args.out))
    source = args.data.open(args.split)
    with jax.set_mesh(make_mesh("dp")):
        found = compute_statistics(args.features.open(source.shape), source, args.batch_size)
    on_main_process(lambda: save_statistics(found, args.out))
    what = f"{found.count} examples, {found.mean.size} features ({found.features})"
    spatial = "" if found.spatial is None else f", {found.spatial.mean.size} spatial ones"
    cli.print_results(what + spatial, args.out)
