"""Rows times a weight: one value, whichever factor is first, and the order for as many rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odelt_eqx.nn.product import product


def arrays(*shape, dtype=jnp.float32, outputs=20):
    keys = jax.random.split(jax.random.key(0))
    weight = jax.random.normal(keys[1], (outputs, shape[-1]), dtype)
    return jax.random.normal(keys[0], shape, dtype), weight


def weight_is_first(call, *args, platform="cpu"):
    text = jax.jit(call).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return "optimization_barrier" in text


@pytest.mark.parametrize("shape", [(4, 16), (5, 16), (2, 2, 16), (0, 16), (1, 1, 1, 16)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_the_product(shape, dtype):
    x, weight = arrays(*shape, dtype=dtype)
    found = jax.jit(product)(x, weight)
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], 20)
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    np.testing.assert_allclose(
        found.astype(float), exact, 2e-2, 5e-2 if dtype != "float32" else 1e-5
    )


def test_the_weight_is_first_for_few_rows_on_a_cpu():
    few, weight = arrays(4, 16)
    many, _ = arrays(5, 16)
    assert weight_is_first(product, few, weight)
    assert not weight_is_first(product, many, weight)
    assert not weight_is_first(product, few, weight[:15])  # whose shorter side it is that counts
    assert not weight_is_first(product, few, weight, platform="cuda")


def test_the_rows_of_a_whole_batch_are_counted():
    x, weight = arrays(3, 2, 2, 16)
    once = jax.vmap(product, (0, None))
    twice = jax.vmap(once, (0, None))
    assert weight_is_first(once, x[0], weight)
    assert weight_is_first(jax.vmap(product, (1, None), 1), x[0], weight)
    assert not weight_is_first(twice, x, weight)
    np.testing.assert_allclose(twice(x, weight), x @ weight.T, rtol=1e-5, atol=1e-5)
    along = jax.vmap(product, (1, None), 1)(x[0], weight)
    np.testing.assert_allclose(along, x[0] @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_batch_of_weights():
    x, weight = arrays(3, 16)
    weights = jnp.stack([weight, 2 * weight])
    same = jax.vmap(product, (None, 0))(x, weights)
    np.testing.assert_allclose(same[1], 2 * x @ weight.T, rtol=1e-5, atol=1e-5)
    each = jax.vmap(product)(jnp.stack([x, -x]), weights)
    np.testing.assert_allclose(each[1], -2 * x @ weight.T, rtol=1e-5, atol=1e-5)


def test_what_is_differentiated_has_the_weight_second():
    x, weight = arrays(2, 4, 16)

    def energy(x, weight):
        return (jax.vmap(product, (0, None))(x, weight) ** 2).sum()

    def plain(x, weight):
        return ((x @ weight.T) ** 2).sum()

    gradient, expected = (jax.grad(f, (0, 1)) for f in (energy, plain))
    assert not weight_is_first(gradient, x, weight)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        (gradient(x, weight), jax.hessian(energy)(x, weight)),
        (expected(x, weight), jax.hessian(plain)(x, weight)),
    )
    tangents = x + 1, weight - 1
    found, exact = (jax.jvp(f, (x, weight), tangents) for f in (energy, plain))
    np.testing.assert_allclose(found, exact, rtol=1e-5)
