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
from odelt_eqx.ode import LengthStats
from odelt_eqx.training.step import squared_error
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


class Normal(odelt.Network):
    """The exact mean velocities of classes that are normal, and those of the flow with guidance.

    A class has a mean and the standard deviation `width`. The velocity without a label is that of
    their mixture, and so is the one with guidance only for a step of no size.
    """

    means: jax.Array
    width: float
    condition_type: odelt.Classes = odelt.Classes(2)
    factor: float = 1.0
    shape, depths, flow_index, length, anytime = (2,), (1,), 7, odelt.FixedSteps(), True

    def of_class(self, t, x, step, mean):
        """Return the mean velocity, states being `t mean + spread z`."""
        spread = lambda t: jnp.sqrt((1 - t) ** 2 + (self.width * t) ** 2)
        slope = (t * self.width**2 - (1 - t)) / spread(t) ** 2
        flow = mean + slope * (x - t * mean)
        ahead = (t + step) * mean + spread(t + step) / spread(t) * (x - t * mean)
        mean_velocity = (ahead - x) / jnp.where(step > 0, step, 1)
        distance = jnp.sum((x - t * mean) ** 2, 1, keepdims=True)
        return jnp.where(step > 0, mean_velocity, flow), -distance / (2 * spread(t) ** 2)

    def velocity(self, inputs):
        t, x, index, label = inputs.t[:, None], inputs.x, inputs.step_index, inputs.condition
        step = jnp.where(index < 7, 2.0**-index, 0)[:, None]
        velocities, logits = zip(*(self.of_class(t, x, step, m) for m in self.means), strict=True)
        first = jax.nn.sigmoid(logits[0] - logits[1])
        null = first * velocities[0] + (1 - first) * velocities[1]
        own = jnp.where(label[:, None] == 0, *velocities)
        if inputs.guidance is not None:
            weight = jnp.where(inputs.guidance.acts(inputs.t), inputs.guidance.weight, 1)[:, None]
            own = null + weight * (own - null)
        own = jnp.where(label[:, None] == 2, null, own)
        return self.factor * own, dataclasses.replace(
            LengthStats.zeros(len(x)), solves=jnp.ones(len(x))
        )


TOLD, COUNT = odelt.Classes(2, max_guidance=4.0), 64
MEANS = jnp.array([[1.0, 0.5], [-1.0, 0.5]])
TWO = jnp.arange(COUNT) % 2
IMPROVED = MeanFlow(every=2, times="uniform", tangent="network", class_dropout=0.3)
GUIDED = dataclasses.replace(IMPROVED, max_guidance=4.0)


def made(objective, network, data, sizeless=False):
    """Draws and targets for a network that is known."""
    draws = objective.draw(jax.random.key(0), COUNT, network, START)
    if sizeless:
        draws = dataclasses.replace(draws, end=draws.flow.time[: len(draws.end)])
    return draws, objective.targets(draws, data, TWO, Networks.all(network))


@pytest.mark.parametrize("objective", [MeanFlow(every=2, times="uniform"), IMPROVED, GUIDED])
def test_where_all_paths_lead_to_a_point_the_known_velocity_has_no_loss(objective):
    kind = TOLD if objective.max_guidance else odelt.Classes(2)
    network = Normal(MEANS[:1].repeat(2, 0), 0.0, kind)
    loss = lambda network: squared_error(network, made(objective, network, network.means[TWO])[1])
    assert loss(network).max() < 1e-5
    assert loss(dataclasses.replace(network, factor=1.1)).mean() > 0.005


@pytest.mark.parametrize("tangent", ["network", "path"])
def test_the_improved_loss_is_that_of_velocities(tangent):
    """At the known one it is that of flow matching, for a step of any size; else it is larger."""
    network = Normal(MEANS[:1].repeat(2, 0), 0.3)
    data = network.means[TWO] + 0.3 * jax.random.normal(jax.random.key(1), (COUNT, 2))
    objective = dataclasses.replace(IMPROVED, tangent=tangent)
    draws, targets = made(objective, network, data)
    flow = objective.flow.targets(draws.flow, data, TWO, Networks.all(network))
    off = np.abs(squared_error(network, targets) - squared_error(network, flow))
    assert off[COUNT // 2 :].max() < 1e-5
    assert (off[: COUNT // 2].max() < 1e-3) == (tangent == "network")


def test_told_guidance_is_what_two_evaluations_give():
    network = Normal(MEANS, 0.0, TOLD)
    draws, targets = made(GUIDED, network, MEANS[TWO], sizeless=True)
    told, dropped = targets.guidance, draws.flow.drop
    np.testing.assert_allclose(squared_error(network, targets)[~dropped], 0, atol=1e-4)
    assert 0.1 < np.mean(dropped) < 0.5
    assert squared_error(network, targets)[dropped].max() > 0.1  # no path is the mean of all
    for found, none in ((told.weight, 1), (told.start, 0), (told.end, 1)):
        assert (found[dropped] == none).all()
    assert (np.diff(np.quantile(told.weight[~dropped], [0, 0.5, 1])) > 0.5).all()
    assert told.acts(targets.t).any()
    assert not told.acts(targets.t).all()


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 3.0},
        {"guidance": np.array([1.0, 2.5, 4.0])},
        {"guidance": 2.0, "guidance_interval": (0.25, 0.5)},
        {"guidance": 0.0},
        {"guidance": 0.0, "guidance_interval": (0.25, 0.5)},
    ],
)
def test_a_network_that_is_told_guidance_is_evaluated_once(options):
    told, other = Normal(MEANS, 0.2, TOLD), Normal(MEANS, 0.2)
    noise, labels = jax.random.normal(jax.random.key(2), (3, 2)), jnp.array([0, 1, 1])
    time = odelt.FixedSteps(8, solver="ab2")  # of the flow field: Normal knows no guided step
    found, stats = odelt.sample_with_stats(told, noise, labels, time=time, **options)
    np.testing.assert_allclose(
        found, odelt.sample(other, noise, labels, time=time, **options), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(stats.evaluations, 8)


def test_guidance_that_was_not_learned_is_refused():
    told, other, noise = Normal(MEANS, 0.2, TOLD), Normal(MEANS, 0.2), jnp.zeros((1, 2))
    for weight in (0.5, 5.0, np.array([9.0])):
        with pytest.raises(odelt.InputError, match="learned guidance from 1 to 4; got"):
            odelt.sample(told, noise, [0], guidance=weight)
        with pytest.raises(odelt.InputError, match="learned guidance from 1 to 4; got"):
            told(0.0, noise, 7, [0], guidance=odelt.Guidance(jnp.asarray(weight)))
    with pytest.raises(odelt.InputError, match="this network is not told the guidance"):
        other(0.0, noise, 7, [0], guidance=odelt.Guidance(2.0))
    for objective, network in ((GUIDED, other), (IMPROVED, told)):
        with pytest.raises(odelt.InputError, match="it must be that of the network as well"):
            made(objective, network, MEANS[TWO])
    with pytest.raises(odelt.InputError, match="class_dropout must lie between 0 and 1; got 0"):
        MeanFlow(class_dropout=0.0, max_guidance=2.0)
