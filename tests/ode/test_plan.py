"""Plans: what they refuse, and what they say a solve costs."""

import diffrax
import jax
import jax.numpy as jnp
import pytest

import odelt_eqx as odelt
from odelt_eqx.ode.plan import SOLVERS, traced

EMBEDDED = [name for name in SOLVERS if name != "euler"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: odelt.FixedSteps(0), "steps must be at least 1; got 0"),
        (lambda: odelt.Adaptive(rtol=0.0), "rtol must be positive; got 0"),
        (lambda: odelt.Adaptive(atol=-1e-3), "atol must be positive; got -0.001"),
        (lambda: odelt.Adaptive(rtol=float("nan")), "rtol must be positive; got nan"),
        (lambda: odelt.Adaptive(max_steps=0), "max_steps must be at least 1; got 0"),
    ],
)
def test_a_plan_that_cannot_be_solved_is_refused(make, message):
    with pytest.raises(odelt.InputError, match=message):
        make()


@pytest.mark.parametrize("plan", [odelt.FixedSteps, odelt.Adaptive])
def test_the_table_of_solvers_is_what_a_plan_accepts(plan):
    for name in SOLVERS if plan is odelt.FixedSteps else EMBEDDED:
        assert plan(solver=name).solver == name


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 63, 64, 100, 128, 1000])
def test_the_step_index_is_the_logarithm_of_the_steps_up_to_the_flow_field(steps):
    plan = odelt.FixedSteps(steps)
    expected = min(len(bin(steps)) - 3, 7)
    assert plan.step_index(7) == expected
    assert int(traced(plan).step_index(7)) == expected


def test_an_adaptive_solve_asks_for_the_flow_field():
    assert odelt.Adaptive().step_index(7) == 7


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_evaluations_are_counted_as_the_field_sees_them(name, kind):
    if kind == "adaptive" and name not in EMBEDDED:
        pytest.skip("euler has no error estimate")
    plan = odelt.FixedSteps(3, name) if kind == "fixed" else odelt.Adaptive(solver=name)
    calls = []

    def field(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.cos(3 * t) * y

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), t0=0.0, t1=1.0, y0=jnp.ones(2), **traced(plan).arguments()
    )
    jax.block_until_ready(solution.ys)
    jax.effects_barrier()
    assert plan.evaluations(int(solution.stats["num_steps"])) == len(calls)
