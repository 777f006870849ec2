"""Which velocity a solve asks for (only a step of Euler's its own mean velocity), and gradients."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.ode import LengthStats
from odelt_eqx.ode.plan import SOLVERS, as_arrays

FLOW = 7
X = jnp.ones((2, 3))


class Spy(odelt.Network):
    """A network that notes the times and the step indices that it is asked for."""

    note: Callable = eqx.field(static=True)
    shape = (3,)
    condition_type = None
    depths = (1,)
    flow_index = FLOW
    length = odelt.FixedSteps()
    anytime = True

    def velocity(self, inputs):
        jax.debug.callback(self.note, inputs.t, inputs.step_index)
        return -inputs.x, LengthStats.zeros(len(inputs.x))


def asked(run):
    """Return the times and the step indices of all calls, by time."""
    calls = []
    note = lambda *call: calls.append([np.ravel(x) for x in call])
    jax.block_until_ready(run(Spy(note)))
    jax.effects_barrier()
    t, index = (np.concatenate(each) for each in zip(*calls, strict=True))
    order = np.argsort(t, kind="stable")
    return t[order], index[order]


FOLLOW_THE_FLOW = [
    *(odelt.FixedSteps(4, solver) for solver in SOLVERS if solver != "euler"),
    odelt.FixedSteps(3, "heun", grid="cosine"),
    odelt.FixedSteps(solver="midpoint", times=(0.0, 0.5, 1.0)),
    odelt.Adaptive(),
    odelt.Adaptive(solver="heun", per_example=True),
]


@pytest.mark.parametrize("plan", FOLLOW_THE_FLOW, ids=str)
def test_every_stage_and_adaptive_step_follows_the_flow(plan):
    _, index = asked(lambda spy: odelt.sample(spy, X, time=plan))
    assert set(index) == {FLOW}


@pytest.mark.parametrize(
    "plan", [odelt.FixedSteps(4), odelt.FixedSteps(2, "heun"), odelt.Adaptive()], ids=str
)
def test_the_way_back_follows_the_flow(plan):
    for run in (
        lambda spy: odelt.invert(spy, X, time=plan),
        lambda spy: odelt.log_likelihood(spy, X, time=plan).log_density,
    ):
        _, index = asked(run)
        assert set(index) == {FLOW}


EULER = [
    *(odelt.FixedSteps(steps) for steps in (1, 3, 100)),
    *(odelt.FixedSteps(5, grid=grid) for grid in ("cosine", "logit-normal")),
    odelt.FixedSteps(times=(0.0, 0.1, 0.5, 1.0)),
]
MORE_EULER = [
    *(odelt.FixedSteps(steps) for steps in (4, 7, 1000)),
    *(odelt.FixedSteps(n, grid=grid) for n in (1, 64) for grid in ("cosine", "logit-normal")),
]


@pytest.mark.parametrize(
    "plan",
    [*EULER, *(pytest.param(plan, marks=pytest.mark.slow) for plan in MORE_EULER)],
    ids=str,
)
def test_a_step_forwards_asks_for_the_mean_velocity_over_its_own_length(plan):
    points = np.array([float(plan.point(jnp.array(i))) for i in range(plan.count + 1)])
    expected = np.minimum(-np.log2(np.diff(points)), FLOW)
    for run in (
        lambda spy: odelt.sample(spy, X, time=plan),
        lambda spy: odelt.sample_with_stats(spy, X, time=plan)[0],
        lambda spy: odelt.trajectory(spy, X, None, (0.0, 0.3, 1.0), time=plan),
    ):
        t, index = asked(run)
        np.testing.assert_allclose(t, np.repeat(points[:-1], len(X)), atol=1e-6)
        np.testing.assert_allclose(index, np.repeat(expected, len(X)), atol=2e-3)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 3, 4, 63, 64, 1000])
def test_the_rule_of_the_reference_has_a_name(steps, solver):
    plan = odelt.FixedSteps(steps, solver)
    _, index = asked(lambda spy: odelt.sample(spy, X, time=plan, as_published=True))
    assert set(index) == {min(len(bin(steps)) - 3, FLOW)}


def test_the_reference_asks_adaptive_solves_for_the_field_of_one_step():
    plan = odelt.Adaptive()
    _, index = asked(lambda spy: odelt.sample(spy, X, time=plan, as_published=True))
    assert set(index) == {0}


@pytest.mark.parametrize("adjoint", ["keep", "recompute"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_sample_of_known_steps_has_a_gradient(solver, adjoint):
    """That of `x -> (1 - h) x` (Euler) and of `x -> (1 - h + h^2 / 2) x` (Heun), 4 times."""
    plan = odelt.FixedSteps(4, solver, adjoint=adjoint)
    spy = Spy(lambda *_: None)
    gradient = jax.grad(lambda x: odelt.sample(spy, x, time=plan).sum())
    factor = 0.75 if solver == "euler" else 0.75 + 0.25**2 / 2
    for found in (gradient(X), jax.jit(gradient)(X)):
        np.testing.assert_allclose(found, jnp.full_like(X, factor**4), rtol=1e-6)


@pytest.mark.thorough
def test_a_gradient_reaches_weights_and_goes_backwards(model):
    noise, labels = jax.random.normal(jax.random.key(2), (2, 8, 8, 1)), jnp.array([1, 2])

    def loss(model, run):
        return run(model, noise, labels, time=odelt.FixedSteps(2), guidance=1.5).sum()

    for run in (odelt.sample, odelt.invert):
        gradient = eqx.filter_jit(eqx.filter_grad(loss))(model, run)
        change = eqx.apply_updates(model, jax.tree.map(lambda g: 1e-3 * g, gradient))
        squares = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
        assert loss(change, run) - loss(model, run) == pytest.approx(1e-3 * squares, rel=0.2)


def test_a_gradient_needs_a_known_number_of_steps():
    spy = Spy(lambda *_: None)

    def loss(x, plan):
        return odelt.sample(spy, x, time=plan).sum()

    plan = odelt.FixedSteps(4)
    assert jax.jit(loss)(X, plan) == pytest.approx(0.75**4 * X.size)
    np.testing.assert_allclose(jax.grad(loss)(X, as_arrays(plan)), 0.75**4, rtol=1e-6)
    with pytest.raises(RuntimeError, match="make steps a Python int"):
        jax.jit(jax.grad(loss))(X, plan)


def test_a_trajectory_is_the_same_where_it_is_traced():
    spy, plan, at = Spy(lambda *_: None), odelt.FixedSteps(4), (0.0, 0.3, 0.5, 1.0)
    states = lambda x: odelt.trajectory(spy, x, None, at, time=plan)
    np.testing.assert_allclose(jax.jit(states)(X), states(X), rtol=1e-6)
    found = jax.grad(lambda x: states(x)[1].sum())(X)  # a fifth of the second step is done
    np.testing.assert_allclose(found, 0.75 * 0.95, rtol=1e-6)
