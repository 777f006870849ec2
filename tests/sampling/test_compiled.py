"""Sampling that is compiled ahead."""

import dataclasses
import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.sampling import CompiledSamplers

NOISE = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
LABELS = jnp.arange(6)


def test_a_compiled_sampler_does_what_sampling_does(model):
    start = odelt.SampleConfig(depth=2, guidance=3.0)
    sampler = odelt.CompiledSampler(model, NOISE, LABELS, start)
    for steps, guidance in ((1, 3.0), (4, 1.5)):
        time = odelt.FixedSteps(steps=steps)
        config = odelt.SampleConfig(time=time, depth=2, guidance=guidance)
        samples, stats = sampler(NOISE, LABELS, config)
        np.testing.assert_allclose(samples, odelt.sample(model, NOISE, LABELS, config), atol=1e-5)
        assert stats.evaluations.tolist() == [2 * steps] * 6
    np.testing.assert_array_equal(sampler(NOISE, LABELS)[0], sampler(NOISE, LABELS, start)[0])
    assert sampler.peak_bytes > sum(x.size for x in (NOISE, LABELS)) * 4
    others = {
        "depth": {"depth": 4},
        "time": {"time": odelt.FixedSteps(solver="heun")},
        "guidance": {"guidance": 1.0},
        "guidance_interval": {"guidance_interval": (0.0, 0.5)},
        "as_published": {"as_published": True},
    }
    for name, options in others.items():  # a program for something else must not be taken for it
        config = dataclasses.replace(start, **options)
        with pytest.raises(odelt.InputError, match=f"compiled for {name} .*; got"):
            sampler(NOISE, LABELS, config)
    with pytest.raises(
        odelt.InputError, match=r"compiled for noise float32\[6,.*; got float32\[5,"
    ):
        sampler(NOISE[:5], LABELS[:5])


def test_the_config_that_was_compiled_still_checks_what_it_is_given(model):
    sampler = odelt.CompiledSampler(
        model, NOISE, LABELS, odelt.SampleConfig(diffusion=1.0, depth=2), jax.random.key(0)
    )
    sampler(NOISE, LABELS, key=jax.random.key(1))
    with pytest.raises(odelt.InputError, match="diffusion draws noise on the way: give a key"):
        sampler(NOISE, LABELS)
    with pytest.raises(odelt.InputError, match="labels must lie between 0 and 9"):
        sampler(NOISE, LABELS + 9, key=jax.random.key(1))
    with pytest.raises(odelt.InputError, match=r"states must have shape \(batch, 8, 8, 1\)"):
        sampler(NOISE[..., 0], LABELS, key=jax.random.key(1))


def test_a_config_with_an_array_that_changes_is_looked_at_again(model):
    weights = np.full(6, 1.5)
    config = eqx.tree_at(lambda c: c.guidance, odelt.SampleConfig(depth=2), weights)
    sampler = odelt.CompiledSampler(model, NOISE, LABELS, config)
    first = sampler(NOISE, LABELS)[0]
    weights[:] = 3.0
    second = sampler(NOISE, LABELS)[0]
    expected = odelt.sample(model, NOISE, LABELS, depth=2, guidance=np.full(6, 3.0))
    np.testing.assert_allclose(second, expected, atol=1e-5)
    assert jnp.abs(second - first).max() > 0.01


def test_samplers_are_shared_by_settings_of_one_program_and_the_last_are_kept(model):
    samplers = CompiledSamplers(model, most=2)
    inputs = lambda steps, **options: (
        *(NOISE, LABELS),
        *(odelt.SampleConfig(time=odelt.FixedSteps(steps), **options), None),
    )
    deep, shallow, guided = {}, {"depth": 2}, {"depth": 2, "guidance": 2.0}
    first, seconds = samplers.get(*inputs(1, **shallow))
    assert seconds > 0
    assert samplers.get(*inputs(3, **shallow)) == (first, None)
    assert not samplers.has(*inputs(1, **deep))
    samplers.get(*inputs(1, **deep))
    assert samplers.get(*inputs(2, **shallow))[0] is first  # so the other is the one used least
    samplers.get(*inputs(1, **guided))
    kept = [samplers.has(*inputs(4, **options)) for options in (deep, shallow, guided)]
    assert kept == [False, True, True]


@pytest.mark.thorough
def test_a_model_that_was_sampled_is_forgotten_with_its_last_name():
    model = odelt.VectorNet(
        odelt.VectorNetConfig(size=2, hidden_size=8, depth=2, depth_min=1, depth_group=1),
        key=jax.random.key(0),
    )
    points = jnp.zeros((3, 2))
    first = odelt.sample(model, points)
    np.testing.assert_array_equal(odelt.sample(model, points), first)
    other = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) else x, model)
    alive = [weakref.ref(network) for network in (model, other)]
    odelt.sample(other, points)
    del model, other
    gc.collect()
    assert [reference() for reference in alive] == [None, None]
