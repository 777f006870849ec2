"""Mean and covariance of features, gathered batch by batch, and the files they are kept in."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Array, Float

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.features import Features, Images, features_of
from odelt_eqx.files import replacing

Rows = Float[np.ndarray, "_ _"] | Float[Array, "_ _"]
"""One feature vector a row."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set, all that a Fréchet distance asks of it.

    Args:
        mean: (features,).
        covariance: (features, features), with n - 1 in the denominator.
        count: how many samples they are of; None where a file does not say.
        features: the name of the features; None where a file does not say.

    Raises:
        InputError: the shapes do not fit together, or a value is not finite.
    """

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "_ _"]
    count: int | None = None
    features: str | None = None

    def __post_init__(self) -> None:
        """Check that mean and covariance can belong together."""
        if self.covariance.shape != 2 * self.mean.shape:
            raise InputError(
                f"a covariance must be square and as wide as its mean {self.mean.shape}; "
                f"got {self.covariance.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise InputError("a mean or a covariance is not finite: take samples that are")


@dataclasses.dataclass(frozen=True)
class Moments:
    """Running moments of a set of vectors in float64; of any number of them it holds only these.

    Args:
        count: how many vectors went in.
        mean: their mean, (features,).
        scatter: the sum of the outer products of their deviations, (features, features).

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979, eq. 2.1.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, "features features"]

    @classmethod
    def of(cls, rows: Rows) -> "Moments":
        """Return the moments of one vector a row; of no rows, they are zero."""
        rows = np.asarray(rows, np.float64)
        mean = rows.mean(0) if len(rows) else np.zeros(rows.shape[1])
        deviations = rows - mean
        return cls(len(rows), mean, deviations.T @ deviations)

    def add(self, rows: Rows) -> "Moments":
        """Return the moments with one more vector a row."""
        return self.merge(Moments.of(rows))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together.

        Raises:
            InputError: the sets have vectors of another width.
        """
        if other.mean.shape != self.mean.shape:
            raise InputError(
                f"vectors of {other.mean.size} features cannot join those of {self.mean.size}"
            )
        count = self.count + other.count
        if not count:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def statistics(self, features: str | None = None) -> Statistics:
        """Return mean and covariance.

        Args:
            features: the name of the features.

        Raises:
            InputError: there are fewer than two vectors, or one of them is not finite.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 samples; got {self.count}")
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count, features)


def statistics_of(features: Features, batches: Iterable[Images]) -> Statistics:
    """Return the statistics of images that come batch by batch, one batch in memory at a time.

    The devices of `jax.set_mesh`, if any, share each batch.

    Args:
        features: what the images are compared by.
        batches: images (batch, height, width, channels) in [-1, 1]; batches of one size share one
            compiled program.

    Raises:
        InputError: there are fewer than two images.
    """
    moments = None
    for images in batches:
        batch = Moments.of(features_of(features, images))
        moments = batch if moments is None else moments.merge(batch)
    if moments is None:
        raise InputError("a covariance needs at least 2 samples; got no images")
    return moments.statistics(features.name)


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics as the reference does: an `.npz` with `mu` and `sigma`.

    The number of samples and the name of the features go beside them, where they are known, as
    `count` and `features`, which the reference and other readers leave alone.
    """
    known = {"count": statistics.count, "features": statistics.features}
    arrays = {name: np.asarray(value) for name, value in known.items() if value is not None}
    arrays |= {"mu": statistics.mean, "sigma": statistics.covariance}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_statistics(path: Path) -> Statistics:
    """Return the statistics in an `.npz` with `mu` and `sigma`; nothing in it is executed.

    Raises:
        InputError: there is no such file, or it holds no statistics.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
            count = int(file["count"]) if "count" in file else None
            features = str(file["features"]) if "features" in file else None
        if mean.ndim != 1:
            raise ValueError(f"mu has shape {mean.shape}")
        return Statistics(mean, covariance, count, features)
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} holds no statistics (mu and sigma of features): {problem}"
        ) from None
