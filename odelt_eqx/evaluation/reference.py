"""Reference statistics: what a Fréchet distance takes from a whole data set, in one file."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from odelt_eqx.data import Data, Digits, open_source
from odelt_eqx.data.reading import in_batches
from odelt_eqx.data.source import Split
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.choice import FeaturesConfig, Pixels
from odelt_eqx.evaluation.features import Images
from odelt_eqx.evaluation.moments import Statistics, save_statistics, statistics_of
from odelt_eqx.hosts import first_does
from odelt_eqx.progress import Progress


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """Whose statistics are taken.

    Args:
        data: the data set.
        split: which part of it.
        batch_size: pictures in memory at once.
    """

    data: Data = Digits()
    split: Split = "train"
    batch_size: int = 250

    def __post_init__(self) -> None:
        """Check the batch."""
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1; got {self.batch_size}")


def save_reference(
    config: ReferenceConfig, path: Path, features: FeaturesConfig = Pixels()
) -> Statistics:
    """Write mean and covariance of the features of a data set; see `save_statistics`.

    Args:
        config: whose.
        path: the `.npz` file to write.
        features: what pictures are compared by.

    Raises:
        InputError: the data or the features cannot be had.
    """
    source = open_source(config.data, config.split)
    with Progress("statistics (pictures)", len(source)) as progress:

        def batches() -> Iterator[Images]:
            for images, _ in in_batches(source, range(len(source)), config.batch_size):
                yield images
                progress.advance(len(images))

        found = statistics_of(features.open(), batches())
    first_does(lambda: save_statistics(found, path))
    return found
