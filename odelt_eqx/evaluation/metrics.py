"""Statistics of feature vectors, and distances between two sets of them."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odelt_eqx.array_files import array_names, read_arrays, write_arrays
from odelt_eqx.data.arrays import Adm
from odelt_eqx.data.source import Source, read_batches
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.features import Features, spatial_name
from odelt_eqx.files import reading
from odelt_eqx.progress import Progress

Rows = Float[np.ndarray, "_ _"] | Float[Array, "_ _"]
"""One feature vector per row."""

KERNEL_SUBSET = 1000  # samples of each set in one estimate of the kernel distance, as is usual
SCORE_SPLIT = 5000  # samples in one estimate of the Inception score, as in ADM's evaluator


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of feature vectors, in float64.

    Args:
        mean: (features,).
        covariance: (features, features), with n - 1 in the denominator; zero for one vector.
        count: number of vectors; None if unknown.
        features: name of the features; None if unknown.
        spatial: those of the same samples' spatial features, if they are known.

    Raises:
        InputError: the shapes do not fit together, or a value is not finite.
    """

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "_ _"]
    count: int | None = None
    features: str | None = None
    spatial: "Statistics | None" = None

    def __post_init__(self) -> None:
        if self.covariance.shape != 2 * self.mean.shape:
            raise InputError(
                f"a covariance must be square and as wide as its mean {self.mean.shape}; "
                f"got {self.covariance.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise InputError("a mean or a covariance is not finite")

    @classmethod
    def of(cls, rows: Rows, features: str | None = None) -> "Statistics":
        """Return the statistics of feature vectors (count, features); zero if there is none."""
        rows = np.asarray(rows, np.float64)
        mean = rows.mean(0) if len(rows) else np.zeros(rows.shape[1])
        deviations = rows - mean
        covariance = deviations.T @ deviations / max(len(rows) - 1, 1)
        return cls(mean, covariance, len(rows), features)

    @cached_property
    def root(self) -> Float[np.ndarray, "features rank"]:
        """A factor whose product with its transpose is the covariance."""
        try:
            return np.linalg.cholesky(self.covariance)  # ten times as fast, unless it is singular
        except np.linalg.LinAlgError:
            pass
        values, vectors = np.linalg.eigh(self.covariance)
        positive = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
        return vectors[:, positive] * np.sqrt(values[positive])

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both sets together, without those of spatial features.

        Their counts must be known.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", eq. 2.1.
        """
        _check_same_features(self, other)
        if not self.count or not other.count:
            return self if self.count else other
        count, gap = self.count + other.count, other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        scatter = np.outer(gap, gap) * (self.count * other.count / count)
        scatter += self.covariance * (self.count - 1) + other.covariance * (other.count - 1)
        return Statistics(mean, scatter / (count - 1), count, self.features)


def _check_same_features(a: Rows | Statistics, b: Rows | Statistics) -> None:
    """Raise an InputError if two sets are known to have different features."""
    widths = [s.mean.size if isinstance(s, Statistics) else s.shape[1] for s in (a, b)]
    names = [getattr(s, "features", None) for s in (a, b)]
    if widths[0] != widths[1] or (all(names) and names[0] != names[1]):
        first, second = (f"{n or 'unnamed'} ({w:,})" for n, w in zip(names, widths, strict=True))
        raise InputError(f"feature mismatch: {first} and {second}")


def frechet_distance(a: Rows | Statistics, b: Rows | Statistics) -> float:
    r"""Return the Fréchet distance between Gaussians fitted to two sets.

    $$|\mu_a - \mu_b|^2 + \mathrm{tr}\bigl(\Sigma_a + \Sigma_b
      - 2 (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2}\bigr)$$

    in float64. The last trace is the sum of the singular values of $A^T B$, where
    $A A^T = \Sigma_a$ and $B B^T = \Sigma_b$, so covariances may be singular. Of a set of fewer
    vectors than features, the factor is the deviations themselves: both numbers bound the cost.

    Source: arXiv 1706.08500. For Inception features it is the FID.
    Differs from the reference: it adds 1e-6 to the diagonals of both covariances.

    Raises:
        InputError: the features differ, or a set has fewer than two samples.

    Warns:
        UserWarning: a set has no more samples than features: its covariance is singular.
    """
    _check_same_features(a, b)
    for s in (a, b):
        count, size = _size(s)
        if count is None or count > size:
            continue
        if count < 2:
            raise InputError(f"a covariance needs at least 2 samples; got {count}")
        warnings.warn(
            f"{count} samples do not determine the covariance of {size} features: this Fréchet "
            "distance compares only with others of as many samples",
            stacklevel=2,
        )
    (mean_a, root_a), (mean_b, root_b) = map(_mean_and_root, (a, b))
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    gap = np.square(mean_a - mean_b).sum()
    return float(max(gap + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross, 0.0))


def _size(s: Rows | Statistics) -> tuple[int | None, int]:
    """Return the number of vectors, None if it is unknown, and that of features."""
    return (s.count, s.mean.size) if isinstance(s, Statistics) else (len(s), s.shape[1])


def _mean_and_root(
    s: Rows | Statistics,
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, "features rank"]]:
    """Return the mean and a factor of the covariance, of no more columns than there are vectors."""
    if not isinstance(s, Statistics):
        rows = np.asarray(s, np.float64)
        if len(rows) <= rows.shape[1]:
            return rows.mean(0), (rows - rows.mean(0)).T / np.sqrt(len(rows) - 1)
        s = Statistics.of(rows)
    return s.mean, s.root


def jackknife_frechet_distance(
    groups: Sequence[Rows], real: Rows | Statistics
) -> tuple[float, float]:
    """Return the Fréchet distance of disjoint groups together, and its jackknife standard error.

    With the distances d_g that leave one of G groups out, the error is
    `sqrt((G - 1) / G * sum((d_g - mean)^2))`. The statistics of the other set are taken as exact.

    Raises:
        InputError: there are fewer than two groups, or as for `frechet_distance`.
    """
    if len(groups) < 2:
        raise InputError(f"an error needs at least two groups; got {len(groups)}")
    parts: Sequence[Any] = groups
    join: Callable[[Sequence[Any]], Any] = np.concatenate
    if sum(map(len, groups)) > groups[0].shape[1]:  # each vector is looked at once
        parts, join = [*map(Statistics.of, groups)], partial(reduce, Statistics.merge)
    value = frechet_distance(join(parts), real)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the distance of all groups has warned
        left_out = [
            frechet_distance(join([*parts[:g], *parts[g + 1 :]]), real) for g in range(len(parts))
        ]
    return value, _jackknife_error(left_out)


def _jackknife_error(left_out: Sequence[float]) -> float:
    """Return the standard error of a number from those that leave one group out each."""
    return float(np.std(left_out) * np.sqrt(len(left_out) - 1))


def inception_score(probabilities: Rows, *, split: int = SCORE_SPLIT) -> float:
    r"""Return the Inception score of the class probabilities of samples, (count, classes).

    $$\exp \mathbb{E}_x \, \mathrm{KL}\bigl(p(y \mid x) \,\|\, p(y)\bigr)$$

    It is the mean over splits, the samples in order and the last split what is left, as ADM's
    evaluator takes it. It lies between 1 and the number of classes, and grows with the split.

    Source: arXiv 1606.03498, section 4.
    """
    from scipy.special import rel_entr

    parts = [probabilities[i : i + split] for i in range(0, len(probabilities), split)]
    divergence = [rel_entr(part, np.mean(part, 0, np.float64)).sum(1).mean() for part in parts]
    return float(np.exp(divergence).mean())


def jackknife_inception_score(
    probabilities: Float[np.ndarray, "count classes"], group: Int[np.ndarray, " count"]
) -> tuple[float, float]:
    """Return the Inception score of samples and its standard error by the jackknife.

    Args:
        group: number of the disjoint group of each sample, from 0 on; at least two groups.
    """
    left_out = [inception_score(probabilities[group != g]) for g in range(group.max() + 1)]
    return inception_score(probabilities), _jackknife_error(left_out)


def kernel_distance(
    a: Rows, b: Rows, *, subset: int = KERNEL_SUBSET, seed: int = 0
) -> tuple[float, float]:
    r"""Return the kernel distance between two sets, and its standard error.

    The unbiased estimate of the squared maximum mean discrepancy under the kernel
    $k(x, y) = (x \cdot y / d + 1)^3$ in d features, averaged over disjoint subsets, so that the
    error is that of their mean. It may be negative. Unlike the Fréchet distance it has no bias for
    small sets. For Inception features it is the KID.

    Source: arXiv 1801.01401, section 4, which draws the subsets with replacement.

    Args:
        subset: samples of each set in one estimate; fewer if that leaves fewer than ten estimates.
        seed: decides which sample is in which subset.

    Raises:
        InputError: the numbers of features differ, or a set has fewer than 20 samples.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check_same_features(a, b)
    smaller = min(len(a), len(b))
    if smaller < 20 or subset < 2:
        raise InputError(
            f"a kernel distance needs 20 samples of each set, and 2 in a subset; "
            f"got {len(a)}, {len(b)} and {subset}"
        )
    size = min(subset, smaller // 10)
    used, rng = smaller // size * size, np.random.default_rng(seed)
    a_subsets, b_subsets = (rng.permutation(len(x))[:used].reshape(-1, size) for x in (a, b))
    values = [_squared_mmd(a[i], b[j]) for i, j in zip(a_subsets, b_subsets, strict=True)]
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _squared_mmd(a: Float[np.ndarray, "n features"], b: Float[np.ndarray, "n features"]) -> float:
    """Return the unbiased estimate from two sets of the same size."""
    from sklearn.metrics.pairwise import polynomial_kernel

    n = len(a)
    aa, bb, ab = polynomial_kernel(a), polynomial_kernel(b), polynomial_kernel(a, b)
    within = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(within - 2 * ab.mean())


def precision_recall(samples: Rows, real: Rows, *, neighbours: int = 3) -> tuple[float, float]:
    """Return improved precision and recall, both in [0, 1].

    The manifold of a set is the union of balls around its members that reach to their
    `neighbours`-th nearest other member. Precision is the share of samples inside the real
    manifold, recall the share of real samples inside the manifold of the samples. Both grow with
    the size of the sets: compare at equal sizes only. Memory is bounded.

    Source: arXiv 1904.06991, eq. 1 and 2; there with 50,000 of each and the third neighbour.

    Args:
        neighbours: which neighbour a ball reaches to, not counting the member itself.

    Raises:
        InputError: the numbers of features differ, or a set has no more members than `neighbours`.
    """
    _check_same_features(samples, real)
    if not 1 <= neighbours < min(len(samples), len(real)):
        raise InputError(
            f"neighbours must be at least 1 and less than the members of both sets, "
            f"{len(samples)} and {len(real)}; got {neighbours}"
        )
    generated, true = np.asarray(samples, np.float64), np.asarray(real, np.float64)
    centre = true.mean(0)  # differences of large squares lose digits
    generated, true = generated - centre, true - centre
    precision = _in_manifold(generated, true, neighbours).mean()
    return float(precision), float(_in_manifold(true, generated, neighbours).mean())


def _in_manifold(
    points: Float[np.ndarray, "points features"],
    members: Float[np.ndarray, "members features"],
    neighbours: int,
) -> Bool[np.ndarray, " points"]:
    """Return whether each point lies in the ball of a member, its surface included."""
    from sklearn.metrics import pairwise_distances_chunked

    # The nearest member is the member itself, at distance 0.
    nearest = lambda chunk, _: np.partition(chunk, neighbours, axis=1)[:, neighbours]
    radius = np.concatenate([*pairwise_distances_chunked(members, reduce_func=nearest)])
    inside = lambda chunk, _: (chunk <= radius).any(axis=1)
    return np.concatenate([*pairwise_distances_chunked(points, members, reduce_func=inside)])


def distance_name(kind: Literal["Fréchet", "Spatial", "Kernel"], features: str) -> str:
    """Return the name of a distance in these features: FID, sFID and KID for Inception only."""
    short = {"Fréchet": "FID", "Spatial": "sFID", "Kernel": "KID"}[kind]
    as_others = {"inception": "", "inception-clean": " (clean)", "inception-adm": " (ADM)"}
    if features in as_others:
        return short + as_others[features]
    return f"{kind} distance ({features})"


def compute_statistics(features: Features, source: Source, batch_size: int = 250) -> Statistics:
    """Return the statistics of a data set; the devices of `jax.set_mesh` share each batch.

    Raises:
        InputError: `batch_size`, the number of examples in memory, is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    names = (features.name, spatial_name(features.name))
    totals = [
        Statistics(np.zeros(width), np.zeros((width, width)), 0, name)
        for name, width in zip(names, features.widths(source.shape), strict=False)
    ]
    with Progress("statistics (samples)", len(source)) as progress:
        for samples, _ in read_batches(source, range(len(source)), batch_size):
            for index, rows in enumerate(features.parts(samples)):
                totals[index] = totals[index].merge(Statistics.of(rows, names[index]))
            progress.advance(len(samples))
    main, *spatial = totals
    return dataclasses.replace(main, spatial=spatial[0]) if spatial else main


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics as the reference and ADM do: an `.npz` file with `mu` and `sigma`.

    Those of spatial features are `mu_s` and `sigma_s`. If they are known, the number of samples
    and the name of the features are in it as `count` and `features`, which other readers ignore.
    """
    spatial = statistics.spatial
    arrays = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "mu_s": None if spatial is None else spatial.mean,
        "sigma_s": None if spatial is None else spatial.covariance,
        "count": statistics.count,
        "features": statistics.features,
    }
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


def load_statistics(path: Path) -> Statistics:
    """Return the statistics in an `.npz` file with `mu` and `sigma`.

    Those of spatial features are `mu_s` and `sigma_s`, if it has them.

    Raises:
        InputError: the file is missing or damaged, or holds something else.
    """
    what = "a file of statistics (mu and sigma of features)"
    others = ("mu_s", "sigma_s", "count", "features")
    arrays = read_arrays(path, what, "mu", "sigma", optional=others)
    with reading(path, what):
        count = int(arrays["count"]) if "count" in arrays else None
        name = str(arrays["features"]) if "features" in arrays else None
        spatial = None
        if {"mu_s", "sigma_s"} <= arrays.keys():
            spatial = _statistics(arrays, "_s", count, name and spatial_name(name))
        return _statistics(arrays, "", count, name, spatial)


def load_reference(path: Path, shape: tuple[int, ...]) -> tuple[Statistics | None, Source | None]:
    """Return the statistics in an `.npz` file and its images `arr_0`; ADM's files hold both.

    Args:
        shape: that of samples; images of grey ones have one channel.

    Raises:
        InputError: the file has neither, or one of them is damaged.
    """
    names = array_names(path, "a reference (mu and sigma, or arr_0)")
    data = Adm(path, grey=shape[2:] == (1,)) if "arr_0" in names else None
    return (
        load_statistics(path) if "mu" in names or data is None else None,
        None if data is None else data.open("train"),
    )


def _statistics(arrays: Mapping[str, np.ndarray], suffix: str, *others: Any) -> Statistics:
    """Return the statistics in arrays of a file; an InputError if they cannot be some."""
    mean, covariance = (np.asarray(arrays[name + suffix], np.float64) for name in ("mu", "sigma"))
    found = Statistics(mean, covariance, *others)
    slack = 1e-5 * np.abs(covariance).max(initial=0)
    if np.abs(covariance - covariance.T).max(initial=0) > slack:
        raise InputError(f"sigma{suffix} is not symmetric")
    if np.diag(covariance).min(initial=0) < -slack:
        raise InputError(f"sigma{suffix} has a negative variance")
    return found
