"""The counted cost of a solve is the number of calls that the field got."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.ode import SOLVERS, LengthStats, integrate_time
from odelt_eqx.ode.count import integrate_time_counted
from odelt_eqx.ode.plan import EmbeddedSolver

NOISE = jax.random.normal(jax.random.key(0), (4, 5))
COUNTED = [(solver, kind, False) for solver in SOLVERS for kind in ("fixed", "adaptive")]
COUNTED += [("euler", "grid", False), ("ab2", "grid", True), ("ab3", "grid", False)]
COUNTED += [("heun", "grid", True), ("tsit5", "adaptive", True)]


def oscillation(t, x, _):
    return 40 * jnp.cos(40 * t) * x


def plan_of(solver, kind):
    if kind == "fixed":
        return odelt.FixedSteps(7, solver)
    if kind == "grid":
        return odelt.FixedSteps(times=(0.0, 1e-6, 0.3, 1.0), solver=solver)
    if solver not in get_args(EmbeddedSolver):
        pytest.skip("it does not estimate its error")
    return odelt.Adaptive(1e-3, 1e-3, solver)


def counted(field, blocks=3):
    def evaluate(t, x, args):
        one = jnp.ones(len(x))
        return field(t, x, args), LengthStats(one, blocks * one, blocks * one, 0 * one, t * one)

    return evaluate


@pytest.mark.parametrize(("solver", "kind", "backwards"), COUNTED)
def test_every_evaluation_is_counted_rejected_steps_included(solver, kind, backwards):
    calls = []

    def field(t, x, args):
        jax.debug.callback(lambda: calls.append(1))
        return oscillation(t, x, args)

    plan = plan_of(solver, kind)
    solution, cost, _ = integrate_time_counted(counted(field), NOISE, plan, backwards=backwards)
    jax.block_until_ready(cost)
    jax.effects_barrier()
    np.testing.assert_array_equal(cost.solves, len(calls))
    np.testing.assert_array_equal(cost.blocks, 3 * len(calls))
    assert (solution.rejected > 0).all() == (kind == "adaptive")


@pytest.mark.parametrize("per_example", [False, True])
def test_counting_does_not_change_the_solve(per_example):
    plan = odelt.Adaptive(1e-3, 1e-3, per_example=per_example)
    rates = jnp.arange(1.0, 5)
    field = lambda t, x, rate: rate[:, None] * jnp.cos(40 * t) * x
    plain = integrate_time(field, NOISE, plan, rates)
    solution, cost, _ = integrate_time_counted(counted(field), NOISE, plan, rates)
    np.testing.assert_array_equal(solution.states, plain.states)
    np.testing.assert_array_equal(solution.accepted, plain.accepted)
    assert cost.solves.shape == (4,)
    steps = solution.accepted + solution.rejected
    np.testing.assert_array_equal(cost.solves, plan.evaluations(steps))
