"""Mean flow against a flow whose mean velocities are known."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.network import index_of_step
from odelt_eqx.objective import FlowMatching, MeanFlow, Networks, TrainingTime
from odelt_eqx.objective.mean_flow import mean_flow_identity
from tests.conftest import NETWORK, TINY

N = 8
IMAGES = jax.random.normal(jax.random.key(3), (N, 8, 8, 1))
LABELS = jnp.arange(N)
START = TrainingTime(0, 1)


def spread(t):
    """Standard deviation at time t of the straight flow from N(0, 1) to N(0, 0.3^2)."""
    return jnp.sqrt((1 - t) ** 2 + (0.3 * t) ** 2)[:, None, None, None]


def test_the_identity_holds_where_it_is_known():
    """On the way to N(0, s^2) states are scaled, so u = x_t (spread(t + D) / spread(t) - 1) / D."""
    t = jnp.linspace(0, 0.6, N)
    step = jnp.linspace(0.05, 0.4, N)
    x = jax.random.normal(jax.random.key(0), (N, 8, 8, 1))

    def mean_velocity(t, x, step):
        return x * (spread(t + step) / spread(t) - 1) / step[:, None, None, None]

    full = t[:, None, None, None]
    velocity = x * ((0.3**2 + 1) * full - 1) / spread(t) ** 2  # x times d(log spread)/dt
    found = mean_flow_identity(mean_velocity, t, x, step, velocity)
    np.testing.assert_allclose(found, mean_velocity(t, x, step), rtol=1e-4, atol=1e-5)
    wrong = mean_flow_identity(
        lambda t, x, step: 1.1 * mean_velocity(t, x, step), t, x, step, velocity
    )
    assert np.abs(wrong - 1.1 * mean_velocity(t, x, step)).max() > 0.05


def test_targets_hold_the_derivative_of_the_network_along_the_flow(model):
    """Forward mode through the length solve equals a difference quotient."""
    objective = MeanFlow(every=2, times="uniform")
    draws = objective.draw(jax.random.key(0), N, NETWORK, START)
    targets = eqx.filter_jit(objective.targets)(draws, IMAGES, LABELS, Networks.all(model))
    n = N // 2
    t, x, labels, noise = (
        a[:n] for a in (targets.t, targets.x_t, targets.condition, draws.flow.noise)
    )
    step, speed = draws.end - t, IMAGES[:n] - noise
    np.testing.assert_allclose(targets.step_index[:n], -np.log2(step), rtol=1e-5)

    @eqx.filter_jit
    def ahead(h):
        at = x + h * speed
        return model(t + h, at, -jnp.log2(step - h), labels, depth=TINY.depth)

    h = 0.003
    slope = (ahead(h) - ahead(-h)) / (2 * h)
    expected = speed + step[:, None, None, None] * slope
    np.testing.assert_allclose(targets.velocity[:n], expected, atol=0.02 * np.abs(slope).max())
    assert np.abs(step[:, None, None, None] * slope).max() > 0.2


def test_the_others_are_flow_matching(model):
    objective = MeanFlow(every=4, times="grid", class_dropout=0.5)
    draws = objective.draw(jax.random.key(0), N, NETWORK, START)
    targets = eqx.filter_jit(objective.targets)(draws, IMAGES, LABELS, Networks.all(model))
    flow = FlowMatching(times="grid").targets(draws.flow, IMAGES, LABELS, Networks.all(model))
    for name in ("x_t", "t", "velocity", "step_index", "condition"):
        np.testing.assert_array_equal(getattr(targets, name)[2:], getattr(flow, name)[2:])
    assert (targets.power == 1).all()


def test_a_step_ends_after_it_starts_and_both_ends_are_alike():
    draws = MeanFlow(every=1).draw(jax.random.key(0), 4096, NETWORK, START)
    assert (draws.end >= draws.flow.time).all()
    assert abs(float(jnp.mean(draws.end)) - 2 / 3) < 0.02
    assert abs(float(jnp.mean(draws.flow.time)) - 1 / 3) < 0.02


def test_steps_ask_for_the_index_that_samplers_ask_for():
    steps = jnp.array([1, 1 / 2, 1 / 3, 1 / 64, 1 / 128, 1 / 1000, 0])
    expected = [0, 1, np.log2(3), 6, 7, 7, 7]
    np.testing.assert_allclose(index_of_step(steps, 7), expected, rtol=1e-6)
    assert jnp.isfinite(jax.vmap(jax.grad(lambda s: index_of_step(s[None], 7)[0]))(steps)).all()


def test_a_step_of_no_size_has_the_velocity_of_the_flow(model):
    objective = MeanFlow(every=1, times="grid")
    draws = objective.draw(jax.random.key(0), N, NETWORK, START)
    draws = dataclasses.replace(draws, end=draws.flow.time)
    targets = eqx.filter_jit(objective.targets)(draws, IMAGES, LABELS, Networks.all(model))
    np.testing.assert_array_equal(targets.velocity, IMAGES - draws.flow.noise)
    assert (targets.step_index == TINY.flow_index).all()


@pytest.mark.parametrize("length", [odelt.FixedSteps(solver="heun"), odelt.Adaptive()], ids=str)
def test_a_length_without_a_forward_derivative_is_refused(length):
    config = dataclasses.replace(TINY, length=length)
    network = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    with pytest.raises(odelt.InputError, match="only through fixed Euler steps of length"):
        MeanFlow().draw(jax.random.key(0), N, network, START)
