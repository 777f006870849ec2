"""Distances between two sets of feature vectors."""

import dataclasses
import warnings
from collections.abc import Sequence
from functools import reduce

import numpy as np
from jaxtyping import Float

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.moments import Moments, Rows, Statistics

KERNEL_SUBSET = 1000
"""Samples of each set in one estimate of the kernel distance, as is usual."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and how far it is to be trusted.

    Args:
        value: the estimate; one of a squared distance may be negative where there is none.
        error: standard error of `value`.
    """

    value: float
    error: float


def frechet_distance(a: Rows | Moments | Statistics, b: Rows | Moments | Statistics) -> float:
    r"""Return the Fréchet distance between the Gaussians fitted to two sets.

    $$|\mu_a - \mu_b|^2 + \mathrm{tr}\bigl(\Sigma_a + \Sigma_b
      - 2 (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2}\bigr)$$

    in float64. The last trace is the sum of the singular values of $A^T B$, where
    $A A^T = \Sigma_a$ and $B B^T = \Sigma_b$: singular covariances are no trouble.

    Source: arXiv 1706.08500. "FID" is this number for Inception features only.
    Differs from the reference: it adds 1e-6 to the diagonals of both covariances.

    Args:
        a: one feature vector a row, or the moments or statistics of a set.
        b: the same for the other set.

    Raises:
        InputError: the sets are of different features, or have fewer than two samples.

    Warns:
        UserWarning: a set has no more samples than features, so that its covariance is singular and
            the number says more about the size of the set than about what is in it.
    """
    a, b = _statistics(a), _statistics(b)
    if a.mean.shape != b.mean.shape or (a.features and b.features and a.features != b.features):
        raise InputError(
            f"{_described(a)} and {_described(b)} are no features of one kind: compare like to like"
        )
    for counted in (a, b):
        if counted.count is not None and counted.count <= counted.mean.size:
            warnings.warn(
                f"{counted.count} samples cannot tell the covariance of {counted.mean.size} "
                "features: this Fréchet distance compares only with others of as many samples",
                stacklevel=2,
            )
    root_a, root_b = _root(a.covariance), _root(b.covariance)
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    gap = np.square(a.mean - b.mean).sum()
    return float(max(gap + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross, 0.0))


def _statistics(given: Rows | Moments | Statistics) -> Statistics:
    given = given if isinstance(given, Moments | Statistics) else Moments.of(given)
    return given.statistics() if isinstance(given, Moments) else given


def _described(statistics: Statistics) -> str:
    return f"{statistics.mean.size} {statistics.features or 'unnamed'} features"


def _root(covariance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n rank"]:
    """Return a factor whose product with its transpose is the covariance."""
    try:
        return np.linalg.cholesky(covariance)  # a tenth of the time, where it is not singular
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def jackknifed_frechet_distance(groups: Sequence[Moments], real: Statistics) -> Estimate:
    """Return the Fréchet distance of all the groups together, and how far it is to be trusted.

    The error is the jackknife's: with the distances d_g that leave one of G groups out,
    `sqrt((G - 1) / G * sum((d_g - mean)^2))`. The other set is taken as it is.

    Args:
        groups: moments of disjoint parts of about one size.
        real: the statistics of the other set.

    Raises:
        InputError: there are fewer than two groups, or as for `frechet_distance`.
    """
    if len(groups) < 2:
        raise InputError(f"an error needs at least two groups; got {len(groups)}")
    value = frechet_distance(reduce(Moments.merge, groups), real)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the whole has warned of too few samples
        left_out = [
            frechet_distance(reduce(Moments.merge, [*groups[:g], *groups[g + 1 :]]), real)
            for g in range(len(groups))
        ]
    return Estimate(value, float(np.std(left_out) * np.sqrt(len(groups) - 1)))


def kernel_distance(
    a: Rows,
    b: Rows,
    *,
    subset: int = KERNEL_SUBSET,
    seed: int = 0,
) -> Estimate:
    r"""Return the kernel distance between two sets, "KID" for Inception features.

    The unbiased estimate of the squared maximum mean discrepancy under the kernel
    $k(x, y) = (x \cdot y / d + 1)^3$ in d features, averaged over subsets. The subsets are
    disjoint, so that they are independent and the error is that of their mean. Unlike the Fréchet
    distance it has no bias in small sets.

    Source: arXiv 1801.01401, section 4, whose subsets are drawn anew each time.

    Args:
        a: one feature vector a row.
        b: the same for the other set.
        subset: samples of each set in one estimate; fewer where that would leave fewer than ten.
        seed: decides which sample is in which subset.

    Raises:
        InputError: the sets are of different widths, or smaller than 20.
    """
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"{a.shape[1]} and {b.shape[1]} features are no features of one kind: "
            "compare like to like"
        )
    smaller = min(len(a), len(b))
    if smaller < 20 or subset < 2:
        raise InputError(
            f"a kernel distance needs 20 samples of each set, and 2 in a subset; "
            f"got {len(a)}, {len(b)} and {subset}"
        )
    size = min(subset, smaller // 10)
    rng = np.random.default_rng(seed)
    parts = [
        rng.permutation(len(rows))[: smaller // size * size].reshape(-1, size) for rows in (a, b)
    ]
    a, b = np.asarray(a), np.asarray(b)
    estimates = [_squared_mmd(a[i], b[j]) for i, j in zip(*parts, strict=True)]
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    return Estimate(float(np.mean(estimates)), float(error))


def _squared_mmd(a: Float[np.ndarray, "n features"], b: Float[np.ndarray, "n features"]) -> float:
    """Return the unbiased estimate from two sets of one size."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, features = a.shape
    aa, bb, ab = ((x @ y.T / features + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(within - 2 * ab.mean())
