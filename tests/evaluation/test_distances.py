"""Distances against their closed forms."""

import itertools
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.coverage import precision_recall
from odelt_eqx.evaluation.distances import frechet_distance, kernel_distance
from odelt_eqx.evaluation.moments import Moments, Statistics

RNG = np.random.default_rng(0)


def whitened(n: int, d: int) -> np.ndarray:
    """Return points whose sample mean is 0 and whose sample covariance is exactly 1."""
    x = RNG.standard_normal((n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T


@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_gaussians_with_diagonal_covariances(dimension):
    x = whitened(200, dimension)
    scale, shift = RNG.uniform(0.5, 2, (2, dimension))
    expected = np.sum(shift**2) + np.sum((1 - scale) ** 2)
    assert frechet_distance(x, x * scale + shift) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_do_not_commute():
    x = whitened(300, 2)
    a, b = np.diag([3.0, 1.0]), np.array([[2.0, 1.0], [1.0, 2.0]])
    product = np.linalg.eigvals(a @ a @ b @ b)
    expected = np.trace(a @ a + b @ b) - 2 * np.sum(np.sqrt(product.real))
    assert frechet_distance(x @ a, x @ b) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_no_trouble():
    x = np.zeros((20, 5))
    x[:, 0] = RNG.standard_normal(20)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(5)


def test_random_covariances_agree_with_the_matrix_square_root():
    for _ in range(5):
        a, b = (RNG.standard_normal((40, 12)) @ RNG.standard_normal((12, 12)) for _ in "ab")
        cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = np.trace(sqrtm(cov_a @ cov_b).real)
        gap = np.square(a.mean(0) - b.mean(0)).sum()
        expected = gap + np.trace(cov_a) + np.trace(cov_b) - 2 * root
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.filterwarnings("ignore:.*samples cannot tell")
def test_a_set_has_no_distance_to_itself_even_where_samples_are_few():
    x = 10 * RNG.standard_normal((30, 200))
    assert frechet_distance(x, x) < 1e-9


def test_low_ranks_have_a_closed_form():
    """One direction each: the cross term is the cosine between them times both deviations."""
    u, v = (w / np.linalg.norm(w) for w in RNG.standard_normal((2, 50)))
    a, b = (Statistics(np.zeros(50), s * np.outer(w, w)) for s, w in ((4.0, u), (9.0, v)))
    assert frechet_distance(a, b) == pytest.approx(4 + 9 - 2 * 2 * 3 * abs(u @ v), abs=1e-12)


def test_sets_moments_and_statistics_are_the_same_to_it():
    a, b = RNG.standard_normal((2, 50, 4))
    expected = frechet_distance(a, b)
    assert frechet_distance(Moments.of(a), jnp.asarray(b)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, Moments.of(b).statistics()) == pytest.approx(expected, rel=1e-12)


def test_too_few_samples_are_said():
    few, many = RNG.standard_normal((8, 8)), RNG.standard_normal((9, 8))
    with pytest.warns(UserWarning, match="8 samples cannot tell the covariance of 8 features"):
        frechet_distance(few, many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(many, many + 1)
        frechet_distance(many, Statistics(np.zeros(8), np.eye(8)))  # of who knows how many


def test_different_features_are_not_compared():
    a = Statistics(np.zeros(3), np.eye(3), features="inception")
    for other in (np.zeros((9, 2)), Statistics(np.zeros(3), np.eye(3), features="pixels")):
        with pytest.raises(InputError, match=r"3 inception features and \d (unnamed|pixels)"):
            frechet_distance(a, other)
    frechet_distance(a, Statistics(np.zeros(3), np.eye(3)))


def test_the_kernel_distance_is_that_of_brute_force():
    a, b = RNG.standard_normal((20, 3)), RNG.standard_normal((24, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    estimates = []
    orders = np.random.default_rng(7)
    i, j = orders.permutation(20), orders.permutation(24)
    for part in range(10):
        x, y = a[i[2 * part : 2 * part + 2]], b[j[2 * part : 2 * part + 2]]
        cross = np.mean([kernel(p, q) for p, q in itertools.product(x, y)])
        estimates.append(kernel(*x) + kernel(*y) - 2 * cross)
    found = kernel_distance(a, b, subset=2, seed=7)
    assert found.value == pytest.approx(np.mean(estimates))
    assert found.error == pytest.approx(np.std(estimates, ddof=1) / np.sqrt(10))


def test_the_kernel_distance_of_one_distribution_is_zero_within_its_error():
    scores = []
    for seed in range(200):
        a, b = np.random.default_rng(seed).standard_normal((2, 200, 4))
        found = kernel_distance(a, b, subset=10)
        scores.append(found.value / found.error)
    assert abs(np.mean(scores)) < 4 / np.sqrt(200)
    assert 0.8 < np.std(scores) < 1.3


def test_the_kernel_distance_of_point_masses_has_a_closed_form():
    a, b = np.ones((30, 2)), np.zeros((40, 2))
    found = kernel_distance(jnp.asarray(a), b)
    assert found.value == pytest.approx((1 + 1) ** 3 + 1 - 2)
    assert found.error == 0


def test_precision_and_recall_of_sets_apart_equal_and_nested():
    line = np.arange(100.0)[:, None] * [1.0, 0.0]
    same = precision_recall(line, line)
    assert (same.precision, same.recall) == (1, 1)
    apart = precision_recall(jnp.asarray(line), jnp.asarray(line + 1e4))
    assert (apart.precision, apart.recall) == (0, 0)
    part = precision_recall(line[40:60], line)  # all real, but they reach only 3 past their ends
    assert (part.precision, part.recall) == (1, 0.26)
    rest = precision_recall(line, line[40:60])
    assert (rest.precision, rest.recall) == (0.26, 1)


def test_precision_and_recall_chunk_by_chunk(monkeypatch):
    a, b = RNG.standard_normal((2, 150, 3))
    whole = precision_recall(a, b + 0.5, neighbours=2)
    monkeypatch.setattr("odelt_eqx.evaluation.coverage.CHUNK", 7)
    assert precision_recall(a, b + 0.5, neighbours=2) == whole
    reach = [np.sort(np.linalg.norm(b - x, axis=1))[2] for x in b]
    inside = [np.any(np.linalg.norm(b + 0.5 - x, axis=1) <= reach) for x in a]
    assert whole.precision == np.mean(inside)


def test_sets_that_do_not_fit_are_refused():
    few, many, wide = np.zeros((3, 2)), np.zeros((30, 2)), np.zeros((30, 3))
    for distance in (kernel_distance, precision_recall):
        with pytest.raises(InputError, match="compare like to like"):
            distance(many, wide)
    with pytest.raises(InputError, match="20 samples of each set"):
        kernel_distance(few, many)
    with pytest.raises(InputError, match="less than the members of both sets, 3 and 30; got 3"):
        precision_recall(few, many)
