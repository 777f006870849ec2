"""The time ODE of a Gaussian, whose velocity and whose flow are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.ode import SOLVERS, guided_velocity, integrate_time
from odelt_eqx.ode.cost import Cost
from odelt_eqx.ode.time import guided_with_cost, one_by_one

MEAN, SPREAD = 0.5, 0.3
FIXED = {"euler": 2000, "midpoint": 64, "heun": 64, "ralston": 64, "bosh3": 16}


def gaussian(t, x, step_index, labels):
    """The velocity that carries N(0, 1) to N(labels * MEAN, SPREAD^2) along straight paths."""
    t, mean = t[:, None], labels[:, None] * MEAN
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2
    return mean + (t * SPREAD**2 - (1 - t)) / variance * (x - t * mean)


def costing(velocity, blocks=3):
    """The velocity as the time ODE sees a network that runs `blocks` blocks an evaluation."""

    def costed(t, x, step_index, labels):
        one = jnp.ones(len(x))
        return velocity(t, x, step_index, labels), Cost(one, blocks * one, blocks * one, 0 * one)

    return costed


def solve(velocity, x, labels, plan, *, guidance=1.0, **kwargs):
    """A solve with labels and guidance, as the samplers make it."""

    def one(x, labels):
        field = lambda t, x, k: guided_with_cost(costing(velocity), t, x, k, labels, 0, guidance)
        return integrate_time(field, x, plan, flow_index=7, **kwargs)

    alone = isinstance(plan, odelt.Adaptive) and plan.per_example
    return (one_by_one(one) if alone else one)(x, labels)


PLANS = [odelt.FixedSteps(FIXED.get(solver, 8), solver) for solver in SOLVERS] + [
    odelt.Adaptive(1e-5, 1e-5, solver) for solver in SOLVERS if solver != "euler"
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{type(p).__name__}-{p.solver}")
def test_every_plan_reaches_the_exact_map_of_a_gaussian(plan):
    noise = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([1, 2, 3, 1, 2, 3])
    solution = solve(gaussian, noise, labels, plan)
    assert not solution.stats.time_failed.any()
    np.testing.assert_allclose(
        solution.states[-1], MEAN * labels[:, None] + SPREAD * noise, atol=2e-3
    )


@pytest.mark.parametrize("plan", PLANS[::3], ids=lambda p: f"{type(p).__name__}-{p.solver}")
def test_every_plan_leads_back_to_the_noise(plan):
    noise = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([1, 2, 3, 1, 2, 3])
    images = MEAN * labels[:, None] + SPREAD * noise
    solution = solve(gaussian, images, labels, plan, backwards=True)
    assert not solution.stats.time_failed.any()
    np.testing.assert_allclose(solution.states[-1], noise, atol=1e-2)


@pytest.mark.parametrize(("plan", "index"), [(odelt.FixedSteps(5), 2), (odelt.Adaptive(), 7)])
def test_the_network_is_told_its_step(plan, index):
    seen = lambda t, x, step_index, labels: x * 0 + step_index[:, None]
    solution = solve(seen, jnp.zeros((2, 1)), jnp.zeros(2, int), plan)
    np.testing.assert_allclose(solution.states[-1], index, rtol=1e-5)


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


NOISE = jax.random.normal(jax.random.key(0), (4, 5))
LABELS = jnp.array([1, 2, 3, 1])


def logistic(t, x, step_index, labels):
    """`x = sigmoid(a + labels sin(RATE t))` for any `a`."""
    return (labels * RATE * jnp.cos(RATE * t))[:, None] * x * (1 - x)


RATE = 3.0


@pytest.fixture
def exact():
    """In float64: states, and where a smooth field takes them."""
    with jax.enable_x64(True):
        start = jnp.asarray(NOISE, jnp.float64)
        end = start + LABELS[:, None] * jnp.sin(RATE)
        yield jax.nn.sigmoid(start), jax.nn.sigmoid(end)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fixed_steps_converge_at_the_order_of_the_solver(solver, exact):
    start, end = exact
    order = SOLVERS[solver]().order(None)

    def error(steps):
        states = solve(logistic, start, LABELS, odelt.FixedSteps(steps, solver)).states
        return float(jnp.abs(states[-1] - end).max())

    steps = {1: 512, 2: 512, 3: 128, 5: 64, 8: 16}[order]
    assert np.log2(error(steps) / error(2 * steps)) == pytest.approx(order, rel=0.1)


@pytest.mark.parametrize(
    ("solver", "per_example"),
    [("heun", False), ("bosh3", True), ("tsit5", False), ("dopri5", False), ("dopri5", True)],
)
def test_tolerances_are_met_in_proportion(solver, per_example, exact):
    start, end = exact
    tolerances = (1e-4, 1e-5, 1e-6)
    errors, evaluations = [], []
    for tol in tolerances:
        plan = odelt.Adaptive(tol, tol, solver, per_example=per_example)
        solution = solve(logistic, start, LABELS, plan)
        errors.append(float(jnp.abs(solution.states[-1] - end).max()))
        evaluations.append(int(solution.stats.evaluations.max()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert all(error < 100 * tol for error, tol in zip(errors, tolerances, strict=True))
    assert evaluations == sorted(set(evaluations))


STIFF = jnp.array([1, 1, 400, 1])
"""Rates of decay: one example needs far smaller steps than the others."""


def decay(t, x, step_index, labels):
    return -labels[:, None] * (x - jnp.cos(t)[:, None])


def test_an_example_with_steps_of_its_own_does_not_feel_its_neighbours():
    plan = odelt.Adaptive(1e-3, 1e-3, "dopri5", per_example=True)
    batch = solve(decay, NOISE, STIFF, plan)
    for i in range(4):
        alone = solve(decay, NOISE[i : i + 1], STIFF[i : i + 1], plan)
        np.testing.assert_allclose(batch.states[-1][i], alone.states[-1][0], rtol=1e-5)
        assert [int(s[i]) for s in batch.stats] == [int(s[0]) for s in alone.stats]
    assert batch.stats.accepted[2] > 3 * batch.stats.accepted[0]
    shared = solve(decay, NOISE, STIFF, odelt.Adaptive(1e-3, 1e-3, "dopri5")).stats
    assert len(set(shared.accepted.tolist())) == 1
    assert shared.accepted[0] > batch.stats.accepted[0]


def test_one_example_that_fails_leaves_the_others_whole():
    few = odelt.Adaptive(1e-3, 1e-3, "dopri5", max_steps=20, per_example=True)
    many = odelt.Adaptive(1e-3, 1e-3, "dopri5", per_example=True)
    tight, loose = solve(decay, NOISE, STIFF, few), solve(decay, NOISE, STIFF, many)
    np.testing.assert_array_equal(tight.stats.time_failed, [False, False, True, False])
    kept = np.array([0, 1, 3])
    np.testing.assert_array_equal(tight.states[-1][kept], loose.states[-1][kept])


COUNTED = [(solver, kind, False) for solver in SOLVERS for kind in ("fixed", "adaptive")]
COUNTED += [("euler", "grid", False), ("heun", "grid", True), ("tsit5", "adaptive", True)]


@pytest.mark.parametrize(("solver", "kind", "backwards"), COUNTED)
def test_every_evaluation_is_counted_rejected_steps_included(solver, backwards, kind):
    calls = []

    def field(t, x, step_index, labels):
        jax.debug.callback(lambda: calls.append(1))
        return 40 * jnp.cos(40 * t)[:, None] * x

    if kind == "adaptive" and solver == "euler":
        pytest.skip("euler has no error estimate")
    plan = {
        "fixed": odelt.FixedSteps(7, solver),
        "grid": odelt.FixedSteps(times=(0.0, 1e-6, 0.3, 1.0), solver=solver),
        "adaptive": None if solver == "euler" else odelt.Adaptive(1e-3, 1e-3, solver),
    }[kind]
    stats = solve(field, NOISE, LABELS, plan, backwards=backwards).stats
    jax.block_until_ready(stats)
    jax.effects_barrier()
    np.testing.assert_array_equal(stats.evaluations, len(calls))
    np.testing.assert_array_equal(stats.blocks, 3 * len(calls))
    np.testing.assert_array_equal(stats.depth, 3)
    assert (stats.rejected > 0).all() == (kind == "adaptive")


def test_a_guided_evaluation_counts_twice():
    stats = solve(gaussian, NOISE, LABELS, odelt.FixedSteps(3), guidance=1.5).stats
    np.testing.assert_array_equal(stats.evaluations, 6)
    np.testing.assert_array_equal(stats.blocks, 18)
