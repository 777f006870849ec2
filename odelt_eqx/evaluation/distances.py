"""Distances between two sets of feature vectors."""

import numpy as np
from jaxtyping import Float


def frechet_distance(
    a: Float[np.ndarray, "n features"], b: Float[np.ndarray, "m features"]
) -> float:
    r"""Return the Fréchet distance between the Gaussians fitted to two sets.

    $$|\mu_a - \mu_b|^2 + \mathrm{tr}\bigl(\Sigma_a + \Sigma_b
      - 2 (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2}\bigr)$$

    in float64, by symmetric eigenvalue problems alone, so that singular covariances are no trouble.
    Source: arXiv 1706.08500. "FID" is this number for Inception features only.

    Args:
        a: one feature vector a row.
        b: the same for the other set.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    gap = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross, 0.0))
