"""Quality of samples: distances to real ones, and whether they show the class asked for."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from odelt_eqx.data.source import Source, read_batches, sample_indices
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.features import (
    EDGES,
    Edges,
    Features,
    Pixels,
    Rows,
    Samples,
    decode,
    decoded_shape,
)
from odelt_eqx.evaluation.metrics import (
    Statistics,
    jackknife_frechet_distance,
    kernel_distance,
    precision_recall,
)
from odelt_eqx.files import fingerprint, read_arrays
from odelt_eqx.nn.autoencoder import Autoencoder

GROUPS = 10  # disjoint random groups of the samples, for standard errors
SUBSET = 5000  # samples, at most, of the kernel distance, precision and recall
SMALLEST_SET = 20  # fewer samples have no kernel distance, precision or recall
TRAINING_EXAMPLES = 10_000  # examples, at most, among which nearest neighbours are searched
NEIGHBOURS = 5

Labels = Int[np.ndarray, " _"]


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of a set of samples; None where there are too few samples, or no classes."""

    frechet: float  # Fréchet distance to real samples; lower is better
    frechet_error: float | None = None  # standard error, by the jackknife over disjoint groups
    kernel: float | None = None  # kernel distance of the first `SUBSET` samples to real ones
    kernel_error: float | None = None  # standard error, over disjoint subsets
    precision: float | None = None  # share of the first `SUBSET` samples in the real manifold
    recall: float | None = None  # share of as many real samples in the manifold of the samples
    accuracy: float | None = None  # share of the samples that show the class asked for
    accuracy_error: float | None = None  # standard error
    second: float | None = None  # Fréchet distance in the features of the second judge
    second_error: float | None = None  # standard error


class Accumulator:
    """What is stored of samples as they pass: all of its attributes are arrays.

    Args:
        total: number of samples there will be.
        features: what they are compared by.
        shape: shape of a sample, decoded.
        second: what they are compared by as well, if anything.
        shown: number of samples that are stored whole, the first ones.
    """

    def __init__(
        self,
        total: int,
        features: Features,
        shape: tuple[int, ...],
        second: Features | None = None,
        shown: int = 0,
    ):
        self.rows = np.zeros((total, features.width(shape)), np.float32)
        self.second = np.zeros((total, 0 if second is None else second.width(shape)), np.float32)
        self.count, self.hits = np.array(0), np.array(0)
        self.limit, self.shown = np.array(shown), np.zeros((0, *shape), np.float32)
        self.cost, self.seconds = np.zeros(4), np.zeros(0)  # used where samples are generated

    def load(self, path: Path) -> None:
        """Continue with the attributes in a file, if there is one that can be read."""
        with contextlib.suppress(InputError):
            vars(self).update(read_arrays(path, "an unfinished row", *vars(self)))

    def add(self, rows: Rows, second: Rows, hits: int) -> None:
        """Add the features of more samples, and how many of them show the class asked for."""
        new = slice(int(self.count), int(self.count) + len(rows))
        self.rows[new], self.second[new] = rows, second
        self.count, self.hits = self.count + len(rows), self.hits + hits


def groups(rows: Rows) -> list[Rows]:
    """Return rows in disjoint random groups, which depend on the index of a row alone."""
    total = len(rows)
    group = np.random.default_rng(0).permutation(total) % max(min(GROUPS, total // 2), 1)
    return [rows[group == g] for g in range(group.max() + 1)]


def _moments(rows: Rows) -> Rows | Statistics:
    """Return the statistics of features, or the features themselves if there are few samples."""
    return rows if len(rows) <= rows.shape[1] else Statistics.of(rows)


class Judge:
    """Measures `Quality` against real samples, whose features are computed once.

    Images are compared by a second kind of features as well, for which nothing was trained: what
    wins by one and loses by the other is no gain. These are edges, or pixels beside edges.

    Args:
        features: what samples are compared by.
        train: training data, among which nearest neighbours are searched unless the features tell
            classes apart themselves.
        held_out: real samples.
        classes: number of classes; None or 1 for no class accuracy.
        reference: statistics that Fréchet distances are taken to; those of `held_out` by default.
        autoencoder: decodes samples and real data, if they are latents.
        batch_size: samples in memory at a time.
    """

    def __init__(
        self,
        features: Features,
        train: Source,
        held_out: Source,
        *,
        classes: int | None,
        reference: Statistics | None = None,
        autoencoder: Autoencoder | None = None,
        batch_size: int = 250,
    ):
        self.features, self.train, self.held_out = features, train, held_out
        self.autoencoder, self.shape = autoencoder, decoded_shape(autoencoder, held_out.shape)
        self.classes = classes or 1
        other = Pixels() if features.name == EDGES else Edges()
        self.second = other.open(self.shape) if len(self.shape) == 3 else None
        self._reference, self._batch_size = reference, batch_size

    @property
    def reference(self) -> str:
        """Description of what Fréchet distances are taken to."""
        if self._reference is None:
            return "the held-out split"
        digest = fingerprint(self._reference.mean, self._reference.covariance)[:8]
        return f"given statistics ({digest})"

    @property
    def reference_count(self) -> int | None:
        """Number of real samples that Fréchet distances are taken to; None if it is unknown."""
        return len(self.held_out) if self._reference is None else self._reference.count

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that samples are asked for."""
        names = self.train.class_names
        return names if len(names) == self.classes else tuple(map(str, range(self.classes)))

    @property
    def accuracy_by(self) -> str:
        """Description of how classes are recognised."""
        if self.features.logits is not None:
            return "by the classifier"
        count = min(TRAINING_EXAMPLES, len(self.train))
        return f"by {NEIGHBOURS} nearest of {count} training examples in {self.features.name}"

    def prepare(self) -> None:
        """Compute what samples are compared with; every process must, before the first `add`.

        Raises:
            InputError: the reference statistics are those of other features.
        """
        _ = self._real, self._moments, self._second_moments

    def accumulator(self, total: int, shown: int = 0) -> Accumulator:
        """Return an empty accumulator for `total` samples, of which `shown` are stored whole."""
        return Accumulator(total, self.features, self.shape, self.second, shown)

    def add(self, state: Accumulator, samples: Samples, labels: Labels) -> None:
        """Add samples that should show `labels`; samples past the last label are ignored."""
        decoded = decode(self.autoencoder, samples)
        rows = self.features(decoded)[: len(labels)]
        second = np.zeros((len(rows), 0))
        if self.second is not None:
            second = self.second(decoded)[: len(labels)]
        hits = int(self.classes > 1 and np.sum(self._classify(rows) == labels))
        state.add(rows, second, hits)
        state.shown = np.concatenate([state.shown, decoded[: len(labels)]])[: state.limit]

    def quality(self, accumulator: Accumulator) -> Quality:
        """Return the quality of the samples in an accumulator."""
        frechet = jackknife_frechet_distance(groups(accumulator.rows), self._moments)
        rows, real = accumulator.rows[:SUBSET], self._real.rows[:SUBSET]
        kernel = manifolds = (None, None)
        size = min(len(rows), len(real))
        if size >= SMALLEST_SET:
            kernel = kernel_distance(rows, real)
            # Precision and recall compare at equal sizes only.
            manifolds = precision_recall(rows[:size], real[:size])
        second = (None, None)
        if self.second is not None:
            second = jackknife_frechet_distance(groups(accumulator.second), self._second_moments)
        return Quality(*frechet, *kernel, *manifolds, *self._accuracy(accumulator), *second)

    def real_quality(self, count: int) -> Quality:
        """Return the quality of `count` other real samples, or of as many as there are.

        They are training examples, or held-out ones if reference statistics are given. The accuracy
        is that of the held-out examples, which no classifier was trained on.
        """
        source = self.train if self._reference is None else self.held_out
        quality = self.quality(self._accumulate(source, count))
        accuracy, error = self._accuracy(self._real)
        return dataclasses.replace(quality, accuracy=accuracy, accuracy_error=error)

    def _accuracy(self, accumulator: Accumulator) -> tuple[float | None, float | None]:
        """Return the class accuracy and its standard error, if there are classes."""
        if self.classes == 1:
            return None, None
        share = float(accumulator.hits / accumulator.count)
        return share, float(np.sqrt(share * (1 - share) / accumulator.count))

    def _accumulate(self, source: Source, count: int) -> Accumulator:
        """Return what is stored of `count` random examples of a source."""
        indices = sample_indices(source, count)
        state = self.accumulator(len(indices))
        for samples, labels in read_batches(source, indices, self._batch_size):
            self.add(state, samples, labels)
        return state

    @cached_property
    def _real(self) -> Accumulator:
        """The real samples that others are compared with."""
        count = len(self.held_out) if self._reference is None else SUBSET
        return self._accumulate(self.held_out, count)

    @cached_property
    def _moments(self) -> Rows | Statistics:
        """What Fréchet distances are taken to: statistics, or the features of few real samples."""
        given = self._reference
        if given is not None and given.features not in (None, self.features.name):
            raise InputError(
                f"feature mismatch: {self.features.name} and reference statistics of "
                f"{given.features}; scripts/stats.py computes others"
            )
        if given is not None:
            return given
        return _moments(self._real.rows)

    @cached_property
    def _second_moments(self) -> Rows | Statistics:
        """What the second judge's distances are taken to: held-out samples."""
        return _moments(self._real.second)

    @cached_property
    def _classify(self) -> Callable[[Rows], Labels]:
        """Predicts classes from features."""
        from sklearn.neighbors import KNeighborsClassifier

        logits = self.features.logits
        if logits is not None:
            return lambda rows: np.asarray(logits(jnp.asarray(rows)).argmax(-1))
        indices = sample_indices(self.train, TRAINING_EXAMPLES)
        batches = read_batches(self.train, indices, self._batch_size)
        examples = [(self.features(decode(self.autoencoder, x)), labels) for x, labels in batches]
        rows, labels = (np.concatenate(parts) for parts in zip(*examples, strict=True))
        return KNeighborsClassifier(NEIGHBOURS).fit(rows, labels).predict
