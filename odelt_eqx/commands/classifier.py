"""Train a small classifier on a data set, whose features compare samples of it."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from odelt_eqx import cli
from odelt_eqx.evaluation.classifier import ClassifierConfig, train_classifier


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Train a classifier and print its held-out accuracy.

    Args:
        out: folder to write to.
        config: how it is trained.
    """

    out: tyro.conf.Positional[Path] = Path("runs/classifier")
    config: Annotated[ClassifierConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ClassifierConfig
    )


def run(words: list[str]) -> None:
    """Read the arguments, train, print the accuracy and where the files are."""
    args = cli.arguments(Classifier, words)
    accuracy, paths = train_classifier(args.config, args.out)
    cli.print_results(f"held-out accuracy: {100 * accuracy:.1f} %", *paths)
