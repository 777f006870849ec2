"""How good pictures are: their distance to real ones, and whether they show what was asked."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from functools import cached_property, reduce

import numpy as np
from jaxtyping import Float, Int

from odelt_eqx.data import Source
from odelt_eqx.data.reading import in_batches, some
from odelt_eqx.evaluation.coverage import precision_recall
from odelt_eqx.evaluation.decoding import Decoder
from odelt_eqx.evaluation.distances import jackknifed_frechet_distance, kernel_distance
from odelt_eqx.evaluation.features import ClassifierFeatures, Features, Images, features_of
from odelt_eqx.evaluation.moments import Moments, Statistics
from odelt_eqx.evaluation.tally import SUBSET, Tally

TRAINING_PICTURES = 10_000
"""Training pictures at most that the nearest neighbours are looked for among."""

NEIGHBOURS = 5
FEWEST = 20
"""Pictures below which nothing is said of distances and coverage."""

Rows = Float[np.ndarray, "count features"]
Labels = Int[np.ndarray, " count"]


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of a set of pictures; None is what so few of them do not tell.

    Args:
        frechet: Fréchet distance to real pictures; less is better.
        frechet_error: its standard error, by the jackknife over disjoint groups of the pictures.
        kernel: kernel distance of the first `SUBSET` pictures to as many real ones at most.
        kernel_error: its standard error, over disjoint subsets.
        precision: share of the first `SUBSET` pictures that look like real ones.
        recall: share of as many real ones that look like a picture.
        accuracy: share given the class asked for; None where there is one class.
        accuracy_error: its standard error.
    """

    frechet: float
    frechet_error: float | None = None
    kernel: float | None = None
    kernel_error: float | None = None
    precision: float | None = None
    recall: float | None = None
    accuracy: float | None = None
    accuracy_error: float | None = None


@dataclasses.dataclass(frozen=True)
class _Real:
    """What pictures are compared with: statistics of all, features of some, and their accuracy."""

    statistics: Statistics
    rows: Rows
    accuracy: dict[str, float]


def _accuracy(tally: Tally) -> dict[str, float]:
    """Return the two figures of the class accuracy, if anybody looked."""
    if tally.hits is None:
        return {}
    share = tally.hits / tally.count
    error = float(np.sqrt(share * (1 - share) / tally.count))
    return {"accuracy": share, "accuracy_error": error}


class Judge:
    """Measures `Quality`; what it needs of the real pictures is computed once, when first asked."""

    def __init__(
        self,
        features: Features,
        train: Source,
        held_out: Source,
        *,
        num_classes: int,
        reference: Statistics | None = None,
        decoder: Decoder = Decoder(),
        batch_size: int = 250,
    ):
        """Compare with `held_out`, or with `reference` where it is given.

        Args:
            features: what pictures are compared by.
            train: where nearest neighbours are looked for, if the features name no classes.
            held_out: real pictures.
            num_classes: of the data; with one, no class is looked for.
            reference: statistics to take Fréchet distances to.
            decoder: what makes images of what is judged, real data included.
            batch_size: pictures in memory at once.
        """
        self.features, self.decoder = features, decoder
        self._train, self._held_out = train, held_out
        self._conditional = num_classes > 1
        self._reference, self._batch_size = reference, batch_size

    @property
    def reference(self) -> str:
        """What Fréchet distances are taken to; of given statistics, what tells them from others."""
        if self._reference is None:
            return "the held-out split"
        content = self._reference.mean.tobytes() + self._reference.covariance.tobytes()
        return f"given statistics ({zlib.crc32(content):08x})"

    @property
    def accuracy_by(self) -> str:
        """Who says which class a picture shows."""
        if isinstance(self.features, ClassifierFeatures):
            return "by the classifier"
        count = min(TRAINING_PICTURES, len(self._train))
        return f"by {NEIGHBOURS} nearest of {count} training pictures in {self.features.name}"

    def prepare(self) -> None:
        """Look at the real pictures now; all processes must, before the first of them judges."""
        _ = self._real

    def add(self, tally: Tally, images: Images, labels: Labels) -> None:
        """Count pictures that were asked to show `labels`; all processes must."""
        rows = self._rows(images)[: len(labels)]
        hits = None
        if self._conditional:
            hits = int(np.sum(self._classify(rows) == labels))
        tally.add(rows, hits)

    def _rows(self, images: Images) -> Rows:
        """Return the features of what is judged."""
        return features_of(self.features, self.decoder(images))

    def quality(self, tally: Tally) -> Quality:
        """Return what a tally of pictures says."""
        distance = jackknifed_frechet_distance(tally.groups, self._real.statistics)
        found = _accuracy(tally)
        rows, real = tally.rows, self._real.rows
        if min(len(rows), len(real)) >= FEWEST:
            size = min(len(rows), len(real))  # precision and recall compare at equal numbers only
            kernel = kernel_distance(rows, real)
            covered = precision_recall(rows[:size], real[:size])
            found |= {"kernel": kernel.value, "kernel_error": kernel.error}
            found |= dataclasses.asdict(covered)
        return Quality(frechet=distance.value, frechet_error=distance.error, **found)

    def of_real(self, count: int) -> Quality:
        """Return the quality of `count` other real pictures, if there are so many.

        They are training pictures, or the held-out ones where a reference is given. The accuracy is
        that of the held-out ones, which no classifier has seen.
        """
        source = self._train if self._reference is None else self._held_out
        places = some(source, count)
        quality = self.of(in_batches(source, places, self._batch_size), len(places))
        return dataclasses.replace(quality, **self._real.accuracy)

    def of(self, batches: Iterable[tuple[Images, Labels]], count: int) -> Quality:
        """Return the quality of `count` pictures that come batch by batch."""
        tally = Tally.empty(count)
        for images, labels in batches:
            self.add(tally, images, labels)
        return self.quality(tally)

    @cached_property
    def _real(self) -> "_Real":
        """Return what all pictures are compared with."""
        places = some(self._held_out, len(self._held_out))
        if self._reference is not None:
            places = places[:SUBSET]
        tally = Tally.empty(len(places))
        for images, labels in in_batches(self._held_out, places, self._batch_size):
            self.add(tally, images, labels)
        own = reduce(Moments.merge, tally.groups)
        statistics = self._reference or own.statistics(self.features.name)
        return _Real(statistics, tally.rows, _accuracy(tally))

    @cached_property
    def _classify(self) -> Callable[[Rows], Labels]:
        """Return what names the class of a picture from its features."""
        from sklearn.neighbors import KNeighborsClassifier

        if isinstance(self.features, ClassifierFeatures):
            return self.features.classify
        rows, classes = [], []
        places = some(self._train, TRAINING_PICTURES)
        for images, labels in in_batches(self._train, places, self._batch_size):
            rows.append(self._rows(images))
            classes.append(labels)
        fitted = KNeighborsClassifier(NEIGHBOURS)
        return fitted.fit(np.concatenate(rows), np.concatenate(classes)).predict
