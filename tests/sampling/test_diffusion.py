"""Sampling by an SDE: the same distribution at every time, other samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.objective import FlowMatching, LengthConsistency
from odelt_eqx.ode import LengthStats
from tests.conftest import TINY_RUN

COUNT, MEAN, SPREAD = 1000, 2.0, 0.3
EULER = odelt.FixedSteps(48)
KEY = jax.random.key(1)
NOISE = jax.random.normal(jax.random.key(0), (COUNT, 2))


class Gaussian(odelt.Network):
    """The flow from N(0, 1) to a Gaussian with this mean and spread."""

    shape: tuple[int, ...] = (2,)
    condition_type: None = None
    depths: tuple[int, ...] = (1,)
    flow_index: int = 3
    length: odelt.FixedSteps = odelt.FixedSteps()
    anytime: bool = False

    def velocity(self, inputs):
        t, x = inputs.t[:, None], inputs.x
        rate = (t * SPREAD**2 - (1 - t)) / ((1 - t) ** 2 + (t * SPREAD) ** 2)
        flow = MEAN + rate * (x - t * MEAN)
        wrong = jnp.where(inputs.step_index == self.flow_index, 0, jnp.nan)
        return flow + wrong[:, None], LengthStats.zeros(len(x))


NETWORK = Gaussian()


def states(**options):
    times = (0.25, 0.5, 0.75, 1.0)
    return times, odelt.trajectory(NETWORK, NOISE, None, times, key=KEY, **options)


@pytest.mark.parametrize("diffusion", [0.5, 4.0])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_distribution_at_every_time_is_that_of_the_path(diffusion, solver):
    plan = odelt.FixedSteps(64, solver)
    for t, x in zip(*states(time=plan, diffusion=diffusion), strict=True):
        spread = np.hypot(1 - t, t * SPREAD)
        assert np.mean(x) == pytest.approx(t * MEAN, abs=0.06)
        assert np.std(x) == pytest.approx(spread, rel=0.08)


def test_noise_is_forgotten_the_more_the_stronger_the_diffusion():
    end = lambda s: odelt.sample(NETWORK, NOISE, time=EULER, diffusion=s, key=KEY)
    kept = [np.corrcoef(np.ravel(NOISE), np.ravel(end(s)))[0, 1] for s in (0.1, 1.0, 9.0)]
    assert 1 > kept[0] > kept[1] > kept[2]
    assert kept[0] > 0.9
    assert kept[2] < 0.3


def test_a_path_is_the_same_however_many_steps_there_are():
    """Euler's error falls with the length of steps; other Brownian motions would stay apart."""
    end = lambda n: odelt.sample(
        NETWORK, NOISE[:200], time=odelt.FixedSteps(n), diffusion=1.0, key=KEY
    )
    fine = end(256)
    errors = [float(jnp.abs(end(n) - fine).mean()) for n in (16, 64)]
    assert errors[1] < errors[0] / 2 < 0.05


@pytest.mark.thorough
def test_samples_can_be_differentiated_by_the_strength():
    """Heun's steps look at t = 1, where there is no noise left."""

    def energy(strength):
        plan = odelt.FixedSteps(3, "heun")
        samples = odelt.sample(NETWORK, NOISE[:5], time=plan, diffusion=strength, key=KEY)
        return (samples**2).sum()

    change = (energy(2.02) - energy(1.98)) / 0.04
    assert float(jax.grad(energy)(2.0)) == pytest.approx(float(change), rel=1e-2)


@pytest.mark.thorough
def test_a_sample_depends_on_its_own_key_alone():
    keys = jax.random.split(KEY, 6)
    run = lambda noise, key: odelt.sample_with_stats(
        NETWORK, noise, time=EULER, diffusion=1.0, key=key
    )
    samples, stats = run(NOISE[:6], keys)
    one, _ = run(NOISE[2:4], keys[2:4])
    np.testing.assert_allclose(one, samples[2:4], atol=1e-6)
    assert stats.evaluations.tolist() == [0] * 6  # the network reports none
    assert stats.accepted.tolist() == [48] * 6
    compiled = odelt.CompiledSampler(
        NETWORK, NOISE[:6], None, odelt.SampleConfig(time=EULER, diffusion=3.0), keys
    )
    again, _ = compiled(NOISE[:6], None, odelt.SampleConfig(time=EULER, diffusion=1.0), keys)
    np.testing.assert_allclose(again, samples, atol=1e-6)
    shared, _ = run(NOISE[:6], KEY)
    fewer, _ = run(NOISE[:3], KEY)
    np.testing.assert_allclose(fewer, shared[:3], atol=1e-6)


def test_a_key_may_be_traced():
    run = lambda key: odelt.sample_with_stats(
        NETWORK, NOISE[:6], time=EULER, diffusion=1.0, key=key
    )
    np.testing.assert_allclose(jax.jit(run)(KEY)[0], run(KEY)[0], atol=1e-6)


def test_a_key_is_one_of_jax(any_types):
    run = lambda key: odelt.sample(NETWORK, NOISE[:6], time=EULER, diffusion=1.0, key=key)
    expected = run(jax.random.key(0))
    np.testing.assert_array_equal(run(jax.random.PRNGKey(0)), expected)
    np.testing.assert_array_equal(run(jax.random.key(0)[None]), expected)
    with pytest.raises(odelt.InputError, match="key must be one of JAX's typed keys"):
        run(0)


@pytest.mark.thorough
def test_evaluations_are_counted(model):
    noise = jax.random.normal(KEY, (2, 8, 8, 1))
    for plan, count in ((odelt.FixedSteps(3), 3), (odelt.FixedSteps(3, "heun"), 6)):
        _, stats = odelt.sample_with_stats(
            model, noise, [1, 2], time=plan, depth=2, diffusion=1.0, key=KEY
        )
        assert stats.evaluations.tolist() == [count] * 2
        assert stats.blocks.tolist() == [2 * count] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "diffusion draws noise on the way: give a key"),
        ({"time": odelt.Adaptive(), "key": KEY}, "diffusion needs fixed steps of time"),
        ({"time": odelt.FixedSteps(4, "ab2"), "key": KEY}, "one of the solvers euler, heun"),
        ({"as_published": True, "key": KEY}, "leave out diffusion"),
        ({"diffusion": -1.0, "key": KEY}, "diffusion must not be negative; got -1.0"),
        ({"key": jax.random.split(KEY, 3)}, r"key must be one key or have shape \(2,\)"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(odelt.InputError, match=message):
        odelt.sample(NETWORK, NOISE[:2], **{"diffusion": 1.0, **options})


def test_only_networks_of_straight_paths_have_this_score():
    curved = FlowMatching(path="trigonometric")
    config = dataclasses.replace(TINY_RUN, objective=LengthConsistency(curved))
    with pytest.raises(odelt.InputError, match="diffusion is for straight paths"):
        dataclasses.replace(config, sample=odelt.SampleConfig(diffusion=1.0))
    config.check_sampling(0.0)
    with pytest.raises(odelt.InputError, match="this run trains along trigonometric ones"):
        config.check_sampling(0.0, 1.0)


def test_the_way_back_leaves_it_out():
    with pytest.warns(UserWarning, match="the way back leaves out diffusion"):
        back = odelt.invert(NETWORK, NOISE[:2], time=EULER, diffusion=1.0)
    np.testing.assert_array_equal(back, odelt.invert(NETWORK, NOISE[:2], time=EULER))
