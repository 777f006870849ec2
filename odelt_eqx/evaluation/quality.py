"""Quality of samples: distances to real ones, and whether they show the class asked for."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from odelt_eqx.array_files import read_arrays
from odelt_eqx.data.source import Source, read_batches, sample_indices
from odelt_eqx.entry import typed
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
    spatial_name,
)
from odelt_eqx.evaluation.metrics import (
    Statistics,
    jackknife_frechet_distance,
    jackknife_inception_score,
    kernel_distance,
    precision_recall,
)
from odelt_eqx.files import fingerprint
from odelt_eqx.nn.autoencoder import Autoencoder

GROUPS = 10  # disjoint random groups of the samples, for standard errors
SUBSET = 5000  # samples, at most, of the kernel distance, and unless real images are given also of
# precision and recall
SMALLEST_SET = 20  # fewer samples have no kernel distance, precision or recall
TRAINING_EXAMPLES = 10_000  # examples, at most, among which nearest neighbours are searched
NEIGHBOURS = 5
FINGERPRINTED = 1000  # examples of a split, at most, whose values are in its fingerprint

Labels = Int[np.ndarray, " _"]


def as_text(name: str) -> str:
    r"""Return a name as figures and files of UTF-8 can hold it: other bytes are `\udc..`."""
    return name.encode(errors="backslashreplace").decode()


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of a set of samples; None where there are too few samples, or no classes."""

    frechet: float  # Fréchet distance to real samples; lower is better
    frechet_error: float | None = None  # standard error, by the jackknife over disjoint groups
    kernel: float | None = None  # kernel distance of the first `SUBSET` samples to real ones
    kernel_error: float | None = None  # standard error, over disjoint subsets
    precision: float | None = None  # share of the samples in the real manifold
    recall: float | None = None  # share of real samples in the manifold of the samples
    accuracy: float | None = None  # share of the samples that show the class asked for
    accuracy_error: float | None = None  # standard error
    second: float | None = None  # Fréchet distance in the features of the second judge
    second_error: float | None = None  # standard error
    spatial: float | None = None  # Fréchet distance in spatial features
    spatial_error: float | None = None  # standard error
    inception_score: float | None = None  # higher is better
    inception_score_error: float | None = None  # standard error


class Accumulator:
    """What is stored of samples as they pass: all of its attributes are arrays.

    Args:
        total: number of samples there will be.
        width: number of features of a sample, of all kinds together.
        shape: shape of a sample, decoded.
        shown: number of samples that are stored whole, the first ones.
    """

    def __init__(self, total: int, width: int, shape: tuple[int, ...], shown: int = 0):
        self.rows = np.zeros((total, width), np.float32)
        self.count, self.hits = np.array(0), np.array(0)
        self.limit, self.shown = np.array(shown), np.zeros((0, *shape), np.float32)
        self.cost, self.seconds = np.zeros(4), np.zeros(0)  # used where samples are generated

    def load(self, path: Path) -> None:
        """Continue with the attributes in a file, if there is one that can be read."""
        with contextlib.suppress(InputError):
            found = read_arrays(path, "an unfinished row", *vars(self))
            if found["rows"].shape == self.rows.shape:
                vars(self).update(found)

    def add(self, rows: Rows, hits: int) -> None:
        """Add the features of more samples, and how many of them show the class asked for."""
        self.rows[int(self.count) : int(self.count) + len(rows)] = rows
        self.count, self.hits = self.count + len(rows), self.hits + hits


def group_numbers(total: int) -> Int[np.ndarray, " total"]:
    """Return the number of the random group of each of so many rows."""
    return np.random.default_rng(0).permutation(total) % max(min(GROUPS, total // 2), 1)


def groups(rows: Rows) -> list[Rows]:
    """Return rows in disjoint random groups, which depend on the index of a row alone."""
    group = group_numbers(len(rows))
    return [rows[group == g] for g in range(group.max() + 1)]


def _moments(rows: Rows) -> Rows | Statistics:
    """Return the statistics of features, or the features themselves if there are few samples."""
    return rows if len(rows) <= rows.shape[1] else Statistics.of(rows)


def _check_features(given: Statistics, name: str, width: int) -> None:
    """Raise an InputError if given statistics are not those of the features of a name and width."""
    size = given.mean.size
    if given.features not in (None, name) or size != width:
        raise InputError(
            f"feature mismatch: {name} ({width:,}) and reference statistics of "
            f"{given.features or 'unnamed features'} ({size:,}); {typed('stats')} computes others"
        )


class Judge:
    """Measures `Quality` against real samples, whose features are computed once.

    Images are compared by a second kind of features as well, for which nothing was trained: what
    wins by one and loses by the other is no gain. These are edges, or pixels beside edges; images
    of a single row or column of pixels have none. Where the features come with spatial ones, there
    is a distance of these, too.

    Args:
        features: what samples are compared by.
        train: training data, among which nearest neighbours are searched unless the features tell
            classes apart themselves.
        held_out: real samples.
        classes: number of classes; None or 1 for no class accuracy.
        reference: statistics that Fréchet distances are taken to, but for that of the second
            kind; those of the real samples by default.
        images: real samples instead of `held_out`, never latents. Precision and recall are those
            of all samples and all of these, as ADM's evaluator takes them.
        autoencoder: decodes samples and real data, if they are latents.
        batch_size: samples in memory at a time.

    Raises:
        InputError: `images` have another shape than samples.
    """

    def __init__(
        self,
        features: Features,
        train: Source,
        held_out: Source,
        *,
        classes: int | None,
        reference: Statistics | None = None,
        images: Source | None = None,
        autoencoder: Autoencoder | None = None,
        batch_size: int = 250,
    ):
        self.features, self.train, self.held_out = features, train, held_out
        self.autoencoder, self.shape = autoencoder, decoded_shape(autoencoder, held_out.shape)
        self.classes = classes or 1
        other = Pixels() if features.name == EDGES else Edges()
        has_edges = len(self.shape) == 3 and min(self.shape[:2]) > 1
        self.second = other.open(self.shape) if has_edges else None
        self._reference, self.images, self._batch_size = reference, images, batch_size
        if images is not None and images.shape != self.shape:
            raise InputError(
                f"feature mismatch: samples of shape {self.shape} and a reference of images of "
                f"shape {images.shape}; give one of the same size"
            )
        self._widths: dict[str, int] = {
            **dict(zip(("frechet", "spatial"), features.widths(self.shape), strict=False)),
            **({} if self.second is None else {"second": self.second.widths(self.shape)[0]}),
        }

    @property
    def reference(self) -> str:
        """Description of what Fréchet distances are taken to."""
        given, images = self._reference, self.images
        words: list[str] = []
        values: list[Any] = []
        if given is not None:
            words.append("given statistics")
            values += [given.mean, given.covariance]
        if given is not None and given.spatial is not None:
            values += [given.spatial.mean, given.spatial.covariance]
        if images is not None:
            words.append(f"{len(images):,} given images")
            values.append(images.contents.fingerprint)
        if not values:
            return "the held-out split"
        return f"{' and '.join(words)} ({fingerprint(*values)[:8]})"

    @property
    def reference_count(self) -> int | None:
        """Number of real samples that Fréchet distances are taken to; None if it is unknown."""
        if self._reference is not None:
            return self._reference.count
        return len(self.held_out if self.images is None else self.images)

    @property
    def real_count(self) -> int:
        """Number of real samples that kernel distance, precision and recall are of, at most."""
        if self.images is not None:
            return len(self.images)
        return len(self.held_out) if self._reference is None else min(SUBSET, len(self.held_out))

    @property
    def further(self) -> tuple[str, ...]:
        """Fields of `Quality` that not all features have: those of Inception."""
        given = self._reference
        spatial = "spatial" in self._widths and (given is None or given.spatial is not None)
        found = {"spatial": spatial, "inception_score": self.features.score_logits is not None}
        return tuple(name for name, there in found.items() if there)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that samples are asked for, as text."""
        names = tuple(map(as_text, self.train.class_names))
        return names if len(names) == self.classes else tuple(map(str, range(self.classes)))

    @property
    def accuracy_by(self) -> str:
        """Description of how classes are recognised."""
        if self.features.logits is not None:
            return "by the classifier"
        count = min(TRAINING_EXAMPLES, len(self.train))
        return f"by {NEIGHBOURS} nearest of {count} training examples in {self.features.name}"

    @cached_property
    def data(self) -> str:
        """Fingerprint of both splits: all names and labels, and the values of some examples."""
        return fingerprint(*map(self._fingerprint, (self.train, self.held_out)))

    def _fingerprint(self, source: Source) -> str:
        batches = read_batches(source, sample_indices(source, FINGERPRINTED), self._batch_size)
        return fingerprint(source.contents, *(fingerprint(*batch) for batch in batches))

    def prepare(self) -> None:
        """Compute what samples are compared with; every process must, before the first `add`.

        Raises:
            InputError: the reference statistics are those of other features.
        """
        _ = self._moments

    def accumulator(self, total: int, shown: int = 0) -> Accumulator:
        """Return an empty accumulator for `total` samples, of which `shown` are stored whole."""
        return Accumulator(total, sum(self._widths.values()), self.shape, shown)

    def add(self, state: Accumulator, samples: Samples, labels: Labels) -> None:
        """Add samples that should show `labels`; samples past the last label are ignored."""
        decoded = decode(self.autoencoder, samples)
        rows = self._rows(decoded)[: len(labels)]
        main = self._parts(rows)["frechet"]
        state.add(rows, int(self.classes > 1 and np.sum(self._classify(main) == labels)))
        state.shown = np.concatenate([state.shown, decoded[: len(labels)]])[: state.limit]

    def _rows(self, decoded: Samples) -> Rows:
        """Return the features of all kinds side by side."""
        parts = self.features.parts(decoded)
        if self.second is not None:
            parts += self.second.parts(decoded)
        return np.concatenate(parts, axis=1)

    def _parts(self, rows: Rows) -> dict[str, Rows]:
        """Return the features of each kind, by the field of `Quality` for their distance."""
        ends = np.cumsum([*self._widths.values()])
        return dict(zip(self._widths, np.split(rows, ends[:-1], axis=1), strict=True))

    def quality(self, accumulator: Accumulator) -> Quality:
        """Return the quality of the samples in an accumulator."""
        found = self._distances(accumulator)
        rows, real = (self._parts(each.rows)["frechet"] for each in (accumulator, self._real))
        size = min(SUBSET, len(rows), len(real))
        if size >= SMALLEST_SET:
            found["kernel"], found["kernel_error"] = kernel_distance(rows[:SUBSET], real[:SUBSET])
            # Precision and recall compare at equal sizes only; with ADM's, at its sizes.
            most = size if self.images is None else None
            found["precision"], found["recall"] = precision_recall(rows[:most], real[:most])
        if self.features.score_logits is not None:
            score = jackknife_inception_score(self._probabilities(rows), group_numbers(len(rows)))
            found["inception_score"], found["inception_score_error"] = score
        found["accuracy"], found["accuracy_error"] = self._accuracy(accumulator)
        return Quality(**found)

    def _distances(self, accumulator: Accumulator) -> dict[str, Any]:
        """Return the Fréchet distances and their standard errors, by the field of `Quality`."""
        parts, found = self._parts(accumulator.rows), {}
        for name, moments in self._moments.items():
            distance = jackknife_frechet_distance(groups(parts[name]), moments)
            found[name], found[f"{name}_error"] = distance
        return found

    def _probabilities(self, rows: Rows) -> Rows:
        """Return the probabilities of the classes that the Inception score is of."""
        logits = self.features.score_logits
        assert logits is not None  # for the type checker
        starts = range(0, len(rows), SUBSET)
        parts = [jax.nn.softmax(logits(jnp.asarray(rows[i : i + SUBSET]))) for i in starts]
        return np.concatenate(parts)

    def real_quality(self, count: int) -> Quality:
        """Return the quality of `count` other real samples, or of as many as there are.

        They are held-out examples where samples are compared with given statistics or images, and
        training examples where they are compared with the held-out split. The accuracy is that of
        held-out examples, which no classifier was trained on.
        """
        if self.images is not None:
            return self.quality(self._accumulate(self.held_out, count))
        quality = self.quality(self._accumulate(self.train, count))
        found = dict(zip(("accuracy", "accuracy_error"), self._accuracy(self._real), strict=True))
        if self._reference is not None:
            held_out = self._distances(self._accumulate(self.held_out, count))
            given = ("frechet", "frechet_error", "spatial", "spatial_error")
            found |= {name: held_out[name] for name in given if name in held_out}
        return dataclasses.replace(quality, **found)

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
            if source is self.images:
                state.add(self._rows(samples), 0)  # they are no latents, and their labels others'
            else:
                self.add(state, samples, labels)
        return state

    @cached_property
    def _real(self) -> Accumulator:
        """The real samples that others are compared with."""
        source = self.held_out if self.images is None else self.images
        return self._accumulate(source, self.real_count)

    @cached_property
    def _moments(self) -> dict[str, Rows | Statistics]:
        """What Fréchet distances are taken to, by the field of `Quality`.

        Statistics, or the features of few real samples. There are none for spatial features where
        a reference was given without them.
        """
        given = self._reference
        fixed = {} if given is None else {"frechet": given, "spatial": given.spatial}
        names = {"frechet": self.features.name, "spatial": spatial_name(self.features.name)}
        for field, statistics in fixed.items():
            if statistics is not None and field in self._widths:
                _check_features(statistics, names[field], self._widths[field])
        real = self._parts(self._real.rows)
        moments = {name: fixed[name] if name in fixed else _moments(real[name]) for name in real}
        return {name: found for name, found in moments.items() if found is not None}

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
