"""Plans: what they refuse, and what they say a solve costs."""

from typing import get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import odelt_eqx as odelt
from odelt_eqx.ode.plan import SOLVERS, EmbeddedSolver, Grid, as_arrays

EMBEDDED = get_args(EmbeddedSolver)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: odelt.FixedSteps(0), "steps must be at least 1; got 0"),
        (lambda: odelt.FixedSteps(2.5), "steps must be a whole number; got 2.5"),
        (lambda: odelt.FixedSteps(4.0), "steps must be a whole number; got 4.0"),
        (lambda: odelt.FixedSteps(times=np.array([0.0, 0.6, 0.5, 1.0])), "times must rise from 0"),
        (lambda: odelt.FixedSteps(times=(0.0, 0.6, 0.5, 1.0)), "times must rise from 0 to 1; got"),
        (lambda: odelt.FixedSteps(times=(0.1, 1.0)), "times must rise from 0 to 1; got"),
        (lambda: odelt.Adaptive(rtol=0.0), "rtol must be positive; got 0"),
        (lambda: odelt.Adaptive(atol=-1e-3), "atol must be positive; got -0.001"),
        (lambda: odelt.Adaptive(rtol=float("nan")), "rtol must be positive; got nan"),
        (lambda: odelt.FixedSteps(times=0.5), "times must be numbers from 0 to 1; got 0.5"),
        (lambda: odelt.Adaptive(rtol="1e-3"), "rtol must be a number; got '1e-3'"),
        (lambda: odelt.Adaptive(atol=np.ones(2)), r"atol must be a number; got array"),
        (lambda: odelt.Adaptive(max_steps=0), "max_steps must be at least 1; got 0"),
    ],
)
def test_a_plan_that_cannot_be_solved_is_refused(any_types, make, message):
    with pytest.raises(odelt.InputError, match=message):
        make()


@pytest.mark.parametrize("plan", [odelt.FixedSteps, odelt.Adaptive])
def test_the_table_of_solvers_is_what_a_plan_accepts(plan):
    for name in SOLVERS if plan is odelt.FixedSteps else EMBEDDED:
        assert plan(solver=name).solver == name


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_evaluations_are_counted_as_the_field_sees_them(name, kind):
    if kind == "adaptive" and name not in EMBEDDED:
        pytest.skip("it does not estimate its error")
    plan = odelt.FixedSteps(3, name) if kind == "fixed" else odelt.Adaptive(solver=name)
    calls = []

    def field(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.cos(3 * t) * y

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), t0=0.0, t1=1.0, y0=jnp.ones(2), **as_arrays(plan).arguments()
    )
    jax.block_until_ready(solution.ys)
    jax.effects_barrier()
    assert plan.evaluations(int(solution.stats["num_steps"])) == len(calls)


@eqx.filter_jit
def solve(plan, t0, t1):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: y),
        t0=t0,
        t1=t1,
        y0=jnp.ones(()),
        saveat=diffrax.SaveAt(steps=True),
        **plan.arguments() | {"max_steps": 1024, "adjoint": diffrax.RecursiveCheckpointAdjoint()},
    )


def ends(plan, t0=0.0, t1=1.0):
    """The times at which a solve has ended a step."""
    solution = solve(plan, jnp.array(t0), jnp.array(t1))
    return np.asarray(solution.ts[: int(solution.stats["num_steps"])])


@pytest.mark.parametrize("grid", get_args(Grid))
def test_a_grid_has_as_many_steps_as_asked_for_and_ends_at_one(grid):
    plans = [odelt.FixedSteps(steps, grid=grid) for steps in (1, 2, 3, 10, 49, 491)]
    for plan in (*map(as_arrays, plans), plans[0], plans[4]):
        steps, times = int(plan.steps), ends(plan)
        assert len(times) == steps
        assert times[-1] == 1
        assert (np.diff(times, prepend=0) > 0).all()


def test_each_grid_is_its_formula():
    share = np.arange(1, 9) / 8
    formulas = {
        "uniform": share,
        "cosine": (1 - np.cos(np.pi * share)) / 2,
        "logit-normal": scipy.special.expit(scipy.stats.norm.ppf(share)),
    }
    for grid, expected in formulas.items():
        np.testing.assert_allclose(ends(odelt.FixedSteps(8, grid=grid)), expected, atol=1e-6)


def test_times_are_taken_as_given_and_compile_nothing_when_changed():
    np.testing.assert_allclose(ends(odelt.FixedSteps(times=(0.0, 0.1, 0.7, 1.0))), [0.1, 0.7, 1])
    programs = eqx.filter_jit(lambda plan: plan.point(jnp.array(1)))
    for middle in (0.2, 0.4):
        assert programs(as_arrays(odelt.FixedSteps(times=(0.0, middle, 1.0)))) == jnp.float32(
            middle
        )
    assert programs._cached._cache_size() == 1


def test_times_may_be_traced():
    plan = lambda times: odelt.FixedSteps(times=times)
    length = lambda time: plan((0.0, time, 1.0)).step_length(jnp.float32(0))
    assert jax.jit(jax.grad(length))(0.3) == 1
    assert jax.jit(lambda times: plan(times).point(jnp.array(1)))(jnp.array([0, 0.25, 1])) == 0.25


def test_a_grid_runs_backwards_through_the_same_times():
    plan = odelt.FixedSteps(times=(0.0, 0.1, 0.7, 1.0))
    np.testing.assert_allclose(ends(plan, 1.0, 0.0), [0.7, 0.1, 0], atol=1e-7)


def test_times_may_be_an_array():
    given = odelt.FixedSteps(times=np.array([0.0, 0.25, 1.0]))
    assert given == odelt.FixedSteps(times=(0.0, 0.25, 1.0))
    assert odelt.FixedSteps(times=jnp.array([0.0, 0.25, 1.0])).count == 2


def test_the_controller_coefficients_change_the_steps_taken():
    def taken(**coefficients):
        plan = odelt.Adaptive(1e-6, 1e-6, "bosh3", **coefficients)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: jnp.cos(20 * t) * y),
            t0=0.0,
            t1=1.0,
            y0=jnp.ones(()),
            **as_arrays(plan).arguments(),
        )
        np.testing.assert_allclose(solution.ys[-1], np.exp(np.sin(20) / 20), rtol=1e-4)
        return int(solution.stats["num_steps"])

    assert taken() != taken(pcoeff=0.4, icoeff=0.3)
