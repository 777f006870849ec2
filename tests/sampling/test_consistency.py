"""Sampling with noise added again."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt

NOISE = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
LABELS = jnp.array([3, 7])


def test_one_step_is_one_euler_step(model):
    images, stats = odelt.consistency_sample(model, NOISE, LABELS, jax.random.key(1))
    np.testing.assert_allclose(images, odelt.sample(model, NOISE, LABELS), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(stats.accepted, 1)
    np.testing.assert_array_equal(stats.blocks, 4)


def test_each_step_predicts_the_image_and_adds_fresh_noise(model):
    """Written out for three given times, with guidance, at a depth."""
    times, key = (0.0, 0.3, 0.7, 1.0), jax.random.key(1)
    x = NOISE
    for i, (now, then) in enumerate(itertools.pairwise(times)):
        labelled, null = (model(now, x, 1, y, depth=2) for y in (LABELS, jnp.full(2, 10)))
        image = x + (1 - now) * (null + 1.5 * (labelled - null))
        fresh = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        x = then * image + (1 - then) * fresh
    plan = odelt.FixedSteps(times=times)
    images, stats = odelt.consistency_sample(
        model, NOISE, LABELS, key, time=plan, depth=2, guidance=1.5
    )
    np.testing.assert_allclose(images, x, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(stats.evaluations, 6)


def test_it_may_be_differentiated_and_its_statistics_are_those_of_sampling(model):
    run = lambda noise: odelt.consistency_sample(
        model, noise, LABELS, jax.random.key(1), time=odelt.FixedSteps(2), depth=2
    )
    gradient = jax.grad(lambda noise: run(noise)[0].sum())(NOISE)
    assert 0 < jnp.abs(gradient).max() < jnp.inf
    assert all(isinstance(values, np.ndarray) for values in run(NOISE)[1])


@pytest.mark.parametrize("time", [odelt.Adaptive(), odelt.FixedSteps(2, "heun")], ids=str)
def test_only_euler_steps_can_be_renoised(model, time):
    with pytest.raises(odelt.InputError, match="consistency sampling takes fixed Euler steps"):
        odelt.consistency_sample(model, NOISE, LABELS, jax.random.key(1), time=time)
