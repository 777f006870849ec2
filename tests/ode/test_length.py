"""The length ODE of linear blocks, whose solution is a matrix expression."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import odelt_eqx as odelt
from odelt_eqx.ode import SOLVERS, ODEBlock, integrate_length

WIDTH, TOKENS, BATCH = 3, 2, 4
ORDER = {
    "euler": 1,
    "midpoint": 2,
    "heun": 2,
    "ralston": 2,
    "bosh3": 3,
    "tsit5": 5,
    "dopri5": 5,
    "dopri8": 8,
}


class LinearBlock(eqx.Module):
    """`tokens -> tokens A`, whatever the condition."""

    matrix: jax.Array

    def __call__(self, tokens, condition, *, key=None):
        return tokens @ self.matrix


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def matrices() -> np.ndarray:
    """Three groups of two blocks near the identity."""
    noise = np.random.default_rng(0).standard_normal((3, 2, WIDTH, WIDTH))
    return 0.5 * np.eye(WIDTH) + 0.3 * noise


@pytest.fixture(scope="module")
def groups(matrices) -> list[ODEBlock]:
    return [ODEBlock(tuple(LinearBlock(jnp.asarray(a)) for a in group)) for group in matrices]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((BATCH, TOKENS, WIDTH))


def propagate(matrices: np.ndarray, tokens: np.ndarray, one_unit: Callable) -> list[np.ndarray]:
    """Return `u` after 0, 1, 2, ... groups, where `one_unit(M, P)` moves the rows `(h, u)`."""
    h, u = tokens, np.zeros_like(tokens)
    after = [u]
    for first, second in matrices:
        last = first @ second
        field = np.block([[first + last - np.eye(WIDTH), last], [np.zeros((WIDTH, 2 * WIDTH))]])
        h, u = np.split(np.concatenate([h, u], axis=-1) @ one_unit(field), 2, axis=-1)
        after.append(u)
    return after


def euler(field: np.ndarray) -> np.ndarray:
    return np.eye(len(field)) + field


def solve(groups, tokens, count, plan):
    condition = jnp.zeros((BATCH, WIDTH))
    return np.asarray(integrate_length(groups, jnp.asarray(tokens), condition, count, plan))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_euler_step_a_group_is_the_published_matrix_expression(groups, matrices, tokens, count):
    expected = propagate(matrices, tokens, euler)[count]
    np.testing.assert_allclose(solve(groups, tokens, count, odelt.FixedSteps()), expected, 1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fixed_steps_converge_to_the_matrix_exponential_at_the_order_of_the_solver(
    groups, matrices, tokens, solver
):
    exact = propagate(matrices, tokens, scipy.linalg.expm)[-1]
    steps = 1 if ORDER[solver] == 8 else 16  # where rounding does not reach
    errors = [
        np.abs(solve(groups, tokens, 3, odelt.FixedSteps(n, solver)) - exact).max()
        for n in (steps, 2 * steps)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(ORDER[solver], abs=0.35)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "euler"])
def test_adaptive_steps_meet_their_tolerance(groups, matrices, tokens, solver):
    exact = propagate(matrices, tokens, scipy.linalg.expm)[-1]
    error = solve(groups, tokens, 3, odelt.Adaptive(1e-6, 1e-6, solver)) - exact
    assert np.abs(error).max() < 1e-4


@pytest.mark.parametrize("plan", [odelt.FixedSteps(), odelt.FixedSteps(2, "heun")])
def test_each_example_may_have_its_own_depth(groups, tokens, plan):
    count = np.array([3, 1, 2, 1])
    alone = [solve(groups, tokens, n, plan)[i] for i, n in enumerate(count.tolist())]
    np.testing.assert_allclose(solve(groups, tokens, count, plan), alone, 1e-12)
    np.testing.assert_allclose(solve(groups, tokens, jnp.asarray(count), plan), alone, 1e-12)


def test_an_edge_is_never_inside_a_solve(groups, tokens):
    """Two groups in a row are the second's solve from where the first ended."""
    plan = odelt.FixedSteps(2, "heun")
    first = jax.vmap(lambda h: groups[0]((h, jnp.zeros_like(h)), jnp.zeros(WIDTH), plan))
    second = jax.vmap(lambda state: groups[1](state, jnp.zeros(WIDTH), plan))
    expected = second(first(jnp.asarray(tokens)))[1]
    np.testing.assert_allclose(solve(groups, tokens, 2, plan), expected, 1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_keeping_and_recomputing_have_the_same_gradient(groups, tokens, steps):
    def loss(groups, adjoint):
        plan = odelt.FixedSteps(steps, adjoint=adjoint)
        u = integrate_length(groups, jnp.asarray(tokens), jnp.zeros((BATCH, WIDTH)), 3, plan)
        return jnp.sum(u**2)

    keep, recompute = (jax.grad(loss)(groups, a) for a in ("keep", "recompute"))
    for a, b in zip(jax.tree.leaves(keep), jax.tree.leaves(recompute), strict=True):
        np.testing.assert_allclose(a, b, 1e-10)


def test_forward_mode_goes_through_the_default_plan(groups, tokens):
    def u(h):
        return integrate_length(groups, h, jnp.zeros((BATCH, WIDTH)), 3, odelt.FixedSteps())

    h = jnp.asarray(tokens)
    _, tangent = jax.jvp(u, (h,), (h,))
    np.testing.assert_allclose(tangent, u(h), 1e-12)


def test_running_out_of_steps_names_the_axis(groups, tokens):
    plan = odelt.Adaptive(1e-9, 1e-9, "heun", max_steps=3)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"the length axis needed more than 3 steps"):
        solve(groups, tokens, 3, plan)
