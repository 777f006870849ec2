"""The time ODE of a Gaussian, whose velocity and whose flow are known."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.ode import SOLVERS, integrate_time
from odelt_eqx.ode.plan import EmbeddedSolver

MEAN, SPREAD = 0.5, 0.3
FIXED = {"euler": 2000, "ab3": 32, "bosh3": 16}
FIXED |= dict.fromkeys(("ab2", "midpoint", "heun", "ralston"), 64)


def gaussian(t, x, labels):
    """The velocity that carries N(0, 1) to N(labels * MEAN, SPREAD^2) along straight paths."""
    mean = labels[:, None] * MEAN
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2
    return mean + (t * SPREAD**2 - (1 - t)) / variance * (x - t * mean)


PLANS = [odelt.FixedSteps(FIXED.get(solver, 8), solver) for solver in SOLVERS] + [
    odelt.Adaptive(1e-5, 1e-5, solver) for solver in get_args(EmbeddedSolver)
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{type(p).__name__}-{p.solver}")
def test_every_plan_reaches_the_exact_map_of_a_gaussian(plan):
    noise = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([1, 2, 3, 1, 2, 3])
    solution = integrate_time(gaussian, noise, plan, labels)
    assert not solution.failed.any()
    np.testing.assert_allclose(
        solution.states[-1], MEAN * labels[:, None] + SPREAD * noise, atol=2e-3
    )


@pytest.mark.parametrize("plan", PLANS[::3], ids=lambda p: f"{type(p).__name__}-{p.solver}")
def test_every_plan_leads_back_to_the_noise(plan):
    noise = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([1, 2, 3, 1, 2, 3])
    images = MEAN * labels[:, None] + SPREAD * noise
    solution = integrate_time(gaussian, images, plan, labels, backwards=True)
    assert not solution.failed.any()
    np.testing.assert_allclose(solution.states[-1], noise, atol=1e-2)


NOISE = jax.random.normal(jax.random.key(0), (4, 5))
LABELS = jnp.array([1, 2, 3, 1])


def logistic(t, x, labels):
    """`x = sigmoid(a + labels sin(RATE t))` for any `a`."""
    return labels[:, None] * RATE * jnp.cos(RATE * t) * x * (1 - x)


RATE = 3.0


@pytest.fixture
def exact():
    """In float64: states, and where a smooth field takes them."""
    with jax.enable_x64(True):
        start = jnp.asarray(NOISE, jnp.float64)
        end = start + LABELS[:, None] * jnp.sin(RATE)
        yield jax.nn.sigmoid(start), jax.nn.sigmoid(end)


@pytest.mark.parametrize(
    ("solver", "grid"),
    [
        *((solver, "uniform") for solver in SOLVERS if solver != "dopri8"),
        *(("ab2", "cosine"), ("ab3", "cosine")),
        pytest.param("dopri8", "uniform", marks=pytest.mark.thorough),
    ],
)
def test_fixed_steps_converge_at_the_order_of_the_solver(solver, grid, exact):
    start, end = exact
    order = SOLVERS[solver]().order(None)

    def error(steps):
        plan = odelt.FixedSteps(steps, solver, grid=grid)
        states = integrate_time(logistic, start, plan, LABELS).states
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
        solution = integrate_time(logistic, start, plan, LABELS)
        errors.append(float(jnp.abs(solution.states[-1] - end).max()))
        evaluations.append(int(plan.evaluations(solution.accepted + solution.rejected).max()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert all(error < 100 * tol for error, tol in zip(errors, tolerances, strict=True))
    assert evaluations == sorted(set(evaluations))


STIFF = jnp.array([1, 1, 400, 1])
"""Rates of decay: one example needs far smaller steps than the others."""


def decay(t, x, labels):
    return -labels[:, None] * (x - jnp.cos(t))


def test_an_example_with_steps_of_its_own_does_not_feel_its_neighbours():
    plan = odelt.Adaptive(1e-3, 1e-3, "dopri5", per_example=True)
    batch = integrate_time(decay, NOISE, plan, STIFF)
    for i in range(4):
        alone = integrate_time(decay, NOISE[i : i + 1], plan, STIFF[i : i + 1])
        np.testing.assert_allclose(batch.states[-1][i], alone.states[-1][0], rtol=1e-5)
        assert batch.accepted[i] == alone.accepted[0]
        assert batch.rejected[i] == alone.rejected[0]
    assert batch.accepted[2] > 3 * batch.accepted[0]
    shared = integrate_time(decay, NOISE, odelt.Adaptive(1e-3, 1e-3, "dopri5"), STIFF)
    assert len(set(shared.accepted.tolist())) == 1
    assert shared.accepted[0] > batch.accepted[0]


def test_one_example_that_fails_leaves_the_others_whole():
    few = odelt.Adaptive(1e-3, 1e-3, "dopri5", max_steps=20, per_example=True)
    many = odelt.Adaptive(1e-3, 1e-3, "dopri5", per_example=True)
    tight, loose = (
        integrate_time(decay, NOISE, few, STIFF),
        integrate_time(decay, NOISE, many, STIFF),
    )
    np.testing.assert_array_equal(tight.failed, [False, False, True, False])
    kept = np.array([0, 1, 3])
    np.testing.assert_array_equal(tight.states[-1][kept], loose.states[-1][kept])


@pytest.mark.parametrize("adjoint", ["keep", "recompute"])
def test_a_known_number_of_steps_can_be_differentiated(adjoint):
    """Each Euler step of `dx/dt = a x` multiplies by `1 + a / n`."""

    def end(rate):
        plan = odelt.FixedSteps(4, adjoint=adjoint)
        return integrate_time(lambda t, x, _: rate * x, jnp.ones((1, 1)), plan).states[-1][0, 0]

    assert float(jax.grad(end)(0.8)) == pytest.approx((1 + 0.8 / 4) ** 3, rel=1e-5)


def test_states_at_the_times_asked_for_come_in_the_order_of_the_solve():
    """With steps of its own, an example's states keep their place in the batch."""
    at = jnp.array([0.25, 0.5, 1.0])
    for per_example in (False, True):
        plan = odelt.Adaptive(1e-6, 1e-6, per_example=per_example)
        states = integrate_time(lambda t, x, y: y[:, None] * x, NOISE, plan, LABELS, at=at).states
        expected = NOISE * jnp.exp(at[:, None, None] * LABELS[:, None])
        np.testing.assert_allclose(states, expected, rtol=1e-4)


@pytest.mark.parametrize("solver", ["ab2", "ab3"])
def test_a_multistep_solve_is_exact_where_its_polynomial_is_and_between_its_steps(solver):
    """The slope is a polynomial of t of the degree that the method integrates, after the start."""
    degree = 1 if solver == "ab2" else 2
    times = (0.0, 1e-6, 2e-6, 0.1, 0.15, 0.5, 0.7, 1.0)
    field = lambda t, y, _: jnp.full_like(y, (degree + 1) * t**degree)
    at = jnp.array([0.12, 0.3, 0.69, 1.0])
    plan = odelt.FixedSteps(solver=solver, times=times)
    found = integrate_time(field, jnp.zeros((1, 1)), plan, at=at).states[:, 0, 0]
    np.testing.assert_allclose(found, at ** (degree + 1), atol=1e-4)
