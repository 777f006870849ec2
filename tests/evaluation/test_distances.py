"""Distances against their closed forms."""

import numpy as np
import pytest

from odelt_eqx.evaluation.distances import frechet_distance

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
