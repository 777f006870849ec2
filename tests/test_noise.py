"""Draws that compile fast are the draws of JAX."""

import jax
import numpy as np
import pytest

from odelt_eqx.noise import normal


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 4, 2)])
def test_noise_is_that_of_jax_to_the_bit(shape):
    key = jax.random.key(3)
    np.testing.assert_array_equal(normal(key, shape), jax.random.normal(key, shape))
