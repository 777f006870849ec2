"""The time ODE of a Gaussian, whose velocity and whose flow are known."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.ode import SOLVERS, guided_velocity, integrate_time

MEAN, SPREAD = 0.5, 0.3
FIXED = {"euler": 2000, "midpoint": 64, "heun": 64, "ralston": 64, "bosh3": 16}


def gaussian(t, x, step_index, labels):
    """The velocity that carries N(0, 1) to N(labels * MEAN, SPREAD^2) along straight paths."""
    t, mean = t[:, None], labels[:, None] * MEAN
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2
    return mean + (t * SPREAD**2 - (1 - t)) / variance * (x - t * mean)


PLANS = [odelt.FixedSteps(FIXED.get(solver, 8), solver) for solver in SOLVERS] + [
    odelt.Adaptive(1e-5, 1e-5, solver) for solver in SOLVERS if solver != "euler"
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{type(p).__name__}-{p.solver}")
def test_every_plan_reaches_the_exact_map_of_a_gaussian(plan):
    noise = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([1, 2, 3, 1, 2, 3])
    solution = integrate_time(gaussian, noise, labels, plan, flow_index=7, null_label=0)
    assert solution.result == diffrax.RESULTS.successful
    np.testing.assert_allclose(solution.ys[-1], MEAN * labels[:, None] + SPREAD * noise, atol=2e-3)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{type(p).__name__}-{p.solver}")
def test_every_plan_leads_back_to_the_noise(plan):
    noise = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([1, 2, 3, 1, 2, 3])
    images = MEAN * labels[:, None] + SPREAD * noise
    solution = integrate_time(
        gaussian, images, labels, plan, flow_index=7, null_label=0, backwards=True
    )
    assert solution.result == diffrax.RESULTS.successful
    np.testing.assert_allclose(solution.ys[-1], noise, atol=1e-2)


@pytest.mark.parametrize(("plan", "index"), [(odelt.FixedSteps(5), 2), (odelt.Adaptive(), 7)])
def test_the_network_is_told_its_step(plan, index):
    seen = lambda t, x, step_index, labels: x * 0 + step_index[:, None]
    solution = integrate_time(
        seen, jnp.zeros((2, 1)), jnp.zeros(2, int), plan, flow_index=7, null_label=0
    )
    np.testing.assert_allclose(solution.ys[-1], index, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.5, jnp.asarray(1.0)])
def test_guidance_extrapolates_from_no_label_and_runs_no_half_it_does_not_need(weight):
    batches = []

    def field(t, x, step_index, labels):
        batches.append(len(x))
        return x + labels[:, None]

    x, labels = jnp.zeros((2, 3)), jnp.array([3, 4])
    v = guided_velocity(field, jnp.zeros(2), x, jnp.zeros(2, int), labels, 10, weight)
    np.testing.assert_allclose(v, (10 + weight * (labels - 10))[:, None] + x)
    assert batches == [2 if isinstance(weight, float) and weight in (0.0, 1.0) else 4]
