"""JAX's strict settings: no implicit promotion of dtypes or ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
from odelt_eqx.objective import LengthConsistency, MeanFlow, Shortcut
from tests.conftest import TINY

pytestmark = pytest.mark.thorough

IMAGES, LABELS = jnp.ones((8, 8, 8, 1)), jnp.arange(8)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize(
    "options",
    [
        {"time": odelt.FixedSteps(3, grid="cosine"), "guidance": 1.5},
        pytest.param(
            {"time": odelt.FixedSteps(4, "ab3"), "depth": np.array([2, 4] * 4)},
            marks=pytest.mark.slow,
        ),
        {"time": odelt.Adaptive(), "length": odelt.Adaptive()},
    ],
    ids=str,
)
def test_samples_are_the_same_under_strict_settings(model, options):
    strict = odelt.sample(model, IMAGES, LABELS, **options)
    odelt.sample_with_stats(model, IMAGES, LABELS, **options)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        np.testing.assert_array_equal(strict, odelt.sample(model, IMAGES, LABELS, **options))


@pytest.mark.parametrize("probes", ["exact", 2])
def test_a_likelihood_is_computed(probes):
    config = odelt.VectorNetConfig(size=2, hidden_size=8, depth=2, depth_min=1, depth_group=1)
    network = config.build(key=jax.random.key(0))
    found = odelt.log_likelihood(network, jnp.ones((3, 2)), probes=probes, key=jax.random.key(1))
    assert jnp.isfinite(found.log_density).all()


@pytest.mark.parametrize("objective", [LengthConsistency(Shortcut(every=4)), MeanFlow()], ids=str)
def test_training_takes_a_step(objective):
    optimizer = optax.adamw(1e-3)
    state = odelt.init_state(TINY.build(key=jax.random.key(0)), optimizer)
    step = odelt.make_train_step(objective, optimizer, steps=10)
    state, metrics = step(state, IMAGES, LABELS, jax.random.key(1))
    assert jnp.isfinite(metrics["loss"])
