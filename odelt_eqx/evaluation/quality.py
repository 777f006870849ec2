"""How good pictures are: their distance to held-out ones, and whether they show what was asked."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from sklearn.neighbors import KNeighborsClassifier

from odelt_eqx.data.source import ArraySource
from odelt_eqx.evaluation.distances import frechet_distance

FEATURES = "pixels"
"""The feature space of every distance here: raw pixels in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of a set of pictures.

    Args:
        frechet: Fréchet distance in pixels to the held-out split; less is better.
        accuracy: share whose class, to the 5 nearest training pictures, is the one asked for.
    """

    frechet: float
    accuracy: float


class Judge:
    """Measures `Quality`, fitted once to a data set."""

    def __init__(self, train: ArraySource, held_out: ArraySource):
        """Fit 5 nearest neighbours to `train` and keep `held_out` to compare with."""
        self._held_out = flat(held_out.images)
        self._classifier = KNeighborsClassifier(5).fit(flat(train.images), train.labels)

    def __call__(
        self,
        images: Float[np.ndarray, "count height width channels"],
        labels: Int[np.ndarray, " count"],
    ) -> Quality:
        """Judge `images` (clipped to [-1, 1]) that were asked to show `labels`."""
        pixels = flat(np.clip(images, -1, 1))
        found = self._classifier.predict(pixels)
        return Quality(
            frechet=frechet_distance(pixels, self._held_out),
            accuracy=float(np.mean(found == labels)),
        )


def flat(
    images: Float[np.ndarray, "count height width channels"],
) -> Float[np.ndarray, "count values"]:
    """Return one row of pixels per image."""
    return np.asarray(images).reshape(len(images), -1)
