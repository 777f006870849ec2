"""The length ODE of linear blocks, whose solution is a matrix expression."""

from collections.abc import Callable
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import odelt_eqx as odelt
from odelt_eqx.ode import SOLVERS, LengthStats, ODEBlock, Stack, integrate_length
from odelt_eqx.ode.plan import EmbeddedSolver

WIDTH, TOKENS, BATCH = 3, 2, 4
ORDER = {
    "euler": 1,
    "ab2": 2,
    "ab3": 3,
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


def solve(groups, tokens, count, plan, **options):
    """Return what is read from `u` after a number of groups of two blocks."""
    condition, depth = jnp.zeros((BATCH, WIDTH)), 2 * count
    h = jnp.asarray(tokens)
    return np.asarray(integrate_length(groups, h, condition, depth, plan, **options)[0])


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


@pytest.mark.parametrize("solver", get_args(EmbeddedSolver))
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
    h, condition = jnp.asarray(tokens), jnp.zeros((BATCH, WIDTH))
    start = (h, jnp.zeros_like(h)), LengthStats.zeros(BATCH)
    (_, expected), _ = groups[1](groups[0](start, condition, plan), condition, plan)
    np.testing.assert_allclose(solve(groups, tokens, 2, plan), expected, 1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_keeping_and_recomputing_have_the_same_gradient(groups, tokens, steps):
    def loss(groups, adjoint):
        plan = odelt.FixedSteps(steps, adjoint=adjoint)
        u, _ = integrate_length(groups, jnp.asarray(tokens), jnp.zeros((BATCH, WIDTH)), 6, plan)
        return jnp.sum(u**2)

    keep, recompute = (jax.grad(loss)(groups, a) for a in ("keep", "recompute"))
    for a, b in zip(jax.tree.leaves(keep), jax.tree.leaves(recompute), strict=True):
        np.testing.assert_allclose(a, b, 1e-10)


class ActiveBlock(LinearBlock):
    """A function of its own after the matrix."""

    function: Callable

    def __call__(self, tokens, condition, *, key=None):
        return self.function(tokens @ self.matrix)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: ActiveBlock(a, jnp.tanh),
        lambda a: LinearBlock(a),
        lambda a: lambda tokens, condition, key=None: jnp.sin(tokens),
    ],
    ids=["another function", "another class", "no arrays"],
)
def test_blocks_that_differ_may_be_recomputed_but_not_stacked(matrices, tokens, make):
    first, second = (jnp.asarray(a) for a in matrices[0])
    blocks = ActiveBlock(first, jnp.sin), make(second)
    group = [ODEBlock(blocks)]
    loss = lambda h, adjoint: jnp.sum(
        integrate_length(group, h, jnp.zeros((BATCH, WIDTH)), 2, odelt.FixedSteps(adjoint=adjoint))[
            0
        ]
    )
    keep, recompute = (
        jax.value_and_grad(loss)(jnp.asarray(tokens), a) for a in ("keep", "recompute")
    )
    for a, b in zip(keep, recompute, strict=True):
        np.testing.assert_allclose(a, b, 1e-10)
    with pytest.raises(odelt.InputError, match="in the values of their arrays alone make a stack"):
        Stack.of(blocks)


def test_a_group_needs_blocks_and_all_groups_one_wiring(any_types, groups, tokens):
    for nothing in ((), LinearBlock(jnp.eye(WIDTH))):
        with pytest.raises(odelt.InputError, match="must be a tuple of at least one block"):
            ODEBlock(nothing)
    mixed = [groups[0], ODEBlock(groups[1].blocks, "residual")]
    with pytest.raises(odelt.InputError, match="groups must have one wiring"):
        solve(mixed, tokens, 2, odelt.FixedSteps())


@pytest.mark.parametrize(
    "plan", [odelt.FixedSteps(), odelt.FixedSteps(2, "heun"), odelt.Adaptive()]
)
def test_stacked_blocks_are_the_same_groups(groups, tokens, plan):
    stacked = [ODEBlock(Stack.of(group.blocks)) for group in groups]
    for count in (2, np.array([3, 1, 2, 1])):
        theirs = solve(groups, tokens, count, plan)
        np.testing.assert_allclose(solve(stacked, tokens, count, plan), theirs, 1e-12)


@pytest.mark.parametrize("adjoint", ["keep", "recompute"])
def test_stacked_blocks_have_the_same_gradient(groups, tokens, adjoint):
    def loss(groups):
        plan = odelt.FixedSteps(3, adjoint=adjoint)
        u, _ = integrate_length(groups, jnp.asarray(tokens), jnp.zeros((BATCH, WIDTH)), 6, plan)
        return jnp.sum(u**2)

    apart = jax.grad(loss)(groups)
    stacked = jax.grad(loss)([ODEBlock(Stack.of(group.blocks)) for group in groups])
    for ours, theirs in zip(stacked, apart, strict=True):
        for block, other in zip(ours.blocks, theirs.blocks, strict=True):
            np.testing.assert_allclose(block.matrix, other.matrix, 1e-10)


def test_a_stack_is_cut_into_groups_and_what_is_left():
    stack = Stack(LinearBlock(jnp.arange(5.0)[:, None, None]))
    parts = stack.split(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [float(block.matrix[0, 0]) for part in parts for block in part] == [0, 1, 2, 3, 4]


def test_forward_mode_goes_through_the_default_plan(groups, tokens):
    def u(h):
        return integrate_length(groups, h, jnp.zeros((BATCH, WIDTH)), 6, odelt.FixedSteps())[0]

    h = jnp.asarray(tokens)
    _, tangent = jax.jvp(u, (h,), (h,))
    np.testing.assert_allclose(tangent, u(h), 1e-12)


def cost(groups, tokens, depth, plan, **kwargs):
    condition = jnp.zeros((BATCH, WIDTH))
    return integrate_length(groups, jnp.asarray(tokens), condition, depth, plan, **kwargs)[1]


@pytest.mark.parametrize(
    ("plan", "stages"), [(odelt.FixedSteps(), 1), (odelt.FixedSteps(3, "heun"), 6)]
)
def test_blocks_are_counted_where_each_example_stops(groups, tokens, plan, stages):
    count = np.array([3, 1, 2, 1])
    for spent in (cost(groups, tokens, 2 * c, plan) for c in (count, jnp.asarray(count))):
        np.testing.assert_array_equal(spent.depth, 2 * count)
        np.testing.assert_array_equal(spent.blocks, 2 * count * stages)


def test_an_adaptive_length_solve_is_counted_and_its_failure_stays_with_its_example(groups, tokens):
    """A zero state is solved in the fewest steps there are; the others take more than allowed."""
    quiet = tokens.copy()
    quiet[1] = 0
    plan = odelt.Adaptive(1e-9, 1e-9, "heun", max_steps=8, per_example=True)
    spent = cost(groups, quiet, 6, plan)
    np.testing.assert_array_equal(spent.failures > 0, [True, False, True, True])
    assert spent.blocks[1] < spent.blocks[0] == 3 * 2 * plan.evaluations(8)
    alone = solve(groups, quiet, 3, odelt.Adaptive(1e-9, 1e-9, "heun", per_example=True))[1]
    np.testing.assert_array_equal(solve(groups, quiet, 3, plan)[1], alone)


def read(u, depth):
    """A nonlinear map, one output per example."""
    return jnp.tanh(u).reshape(len(u), -1) @ jnp.arange(1.0, TOKENS * WIDTH + 1)[:, None]


@pytest.mark.parametrize("wiring", ["accumulate", "residual"])
def test_one_integration_is_read_at_every_edge(matrices, tokens, wiring):
    groups = [ODEBlock(tuple(map(LinearBlock, jnp.asarray(g))), wiring) for g in matrices]
    plan, h = odelt.FixedSteps(2, "heun"), jnp.asarray(tokens)
    condition = jnp.zeros((BATCH, WIDTH))
    together, spent = integrate_length(groups, h, condition, (2, 4, 6), plan, read)
    assert together.shape == (3, BATCH, 1)
    for depth, found in zip((2, 4, 6), together, strict=True):
        alone, _ = integrate_length(groups, h, condition, depth, plan, read)
        np.testing.assert_allclose(found, alone, 1e-12)
    np.testing.assert_array_equal(spent.blocks, 3 * 2 * plan.evaluations(2))
    np.testing.assert_array_equal(spent.error, 0)


def test_the_residual_wiring_is_a_plain_network_at_full_depth(matrices, tokens):
    groups = [ODEBlock(tuple(map(LinearBlock, jnp.asarray(g))), "residual") for g in matrices]
    expected = tokens @ np.linalg.multi_dot(matrices.reshape(-1, WIDTH, WIDTH))
    for plan, count in ((odelt.FixedSteps(), 3), (odelt.FixedSteps(3), "plain")):
        condition, h = jnp.zeros((BATCH, WIDTH)), jnp.asarray(tokens)
        depth = count if count == "plain" else 2 * count
        found = integrate_length(groups, h, condition, depth, plan)[0]
        np.testing.assert_allclose(found, expected, 1e-10)


def test_the_residual_wiring_converges_to_its_matrix_exponential(matrices, tokens):
    groups = [ODEBlock(tuple(map(LinearBlock, jnp.asarray(g))), "residual") for g in matrices]
    exact = tokens
    for first, second in matrices:
        exact = exact @ scipy.linalg.expm(first @ second - np.eye(WIDTH))
    found = solve(groups, tokens, 3, odelt.Adaptive(1e-8, 1e-8, "tsit5"))
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_each_group_may_have_a_condition_of_its_own(tokens):
    class Shift(eqx.Module):
        def __call__(self, tokens, condition, *, key=None):
            return tokens + condition

    groups = [ODEBlock((Shift(),)) for _ in range(3)]
    conditions = tuple(jnp.full((BATCH, WIDTH), c) for c in (1.0, 10.0, 100.0))
    h = jnp.asarray(tokens)
    for depth in (3, (1, 3), np.full(BATCH, 3), jnp.full(BATCH, 3), "plain"):
        u = integrate_length(groups, h, conditions, depth, odelt.FixedSteps())[0]
        u = u[-1] if isinstance(depth, tuple) else u
        expected = tokens + 111
        if not isinstance(depth, str):  # one Euler step is `h <- 2 h + c`, `u <- u + h + c`
            first = 2 * tokens + 1
            expected = (tokens + 1) + (first + 10) + (2 * first + 10 + 100)
        np.testing.assert_allclose(u, expected, 1e-12)


def test_a_tolerance_stops_each_example_where_what_is_read_changes_little(groups, tokens):
    """A tolerance between the changes of two examples stops between them, and reports them.

    A depth that no group ends at changes nothing, and so stops none.
    """
    after = [solve(groups, tokens, n, odelt.FixedSteps(), read=read) for n in (1, 2, 3)]
    rms = lambda x: np.abs(x[:, 0])
    change = rms(after[1] - after[0]) / rms(after[1])
    tolerance = float(np.sort(change)[1:3].mean())
    stops = np.where(change < tolerance, 2, 3)
    assert set(stops.tolist()) == {2, 3}
    outputs, spent = integrate_length(
        groups,
        jnp.asarray(tokens),
        jnp.zeros((BATCH, WIDTH)),
        (2, 3, 4, 6),
        odelt.FixedSteps(),
        read,
        tolerance=tolerance,
    )
    np.testing.assert_array_equal(spent.depth, 2 * stops)
    np.testing.assert_allclose(outputs[:2], after[:1] * 2, 1e-12)
    chosen = [after[n - 1][i] for i, n in enumerate(stops)]
    np.testing.assert_allclose(outputs[-1], chosen, 1e-12)
    error = [rms(after[n - 1] - after[n - 2])[i] for i, n in enumerate(stops)]
    np.testing.assert_allclose(spent.error, error, 1e-9)


def test_no_group_runs_once_all_examples_have_stopped(tokens):
    calls = []

    class Spy(eqx.Module):
        def __call__(self, tokens, condition, *, key=None):
            jax.debug.callback(lambda: calls.append(1))
            return tokens

    groups = [ODEBlock((Spy(),)) for _ in range(4)]
    for tolerance, ran in ((2.0, 2), (1e-9, 4)):
        calls.clear()
        spent = cost(groups, tokens, (1, 2, 3, 4), odelt.FixedSteps(), tolerance=tolerance)
        jax.block_until_ready(spent)
        jax.effects_barrier()
        assert len(calls) == ran
        np.testing.assert_array_equal(spent.depth, ran)


def test_tolerances_are_met_in_proportion(groups, matrices, tokens):
    exact = propagate(matrices, tokens, scipy.linalg.expm)[-1]
    for solver in ("bosh3", "tsit5", "dopri5"):
        errors = [
            np.abs(solve(groups, tokens, 3, odelt.Adaptive(tol, tol, solver)) - exact).max()
            for tol in (1e-4, 1e-6, 1e-8)
        ]
        assert errors[0] > 5 * errors[1] > 25 * errors[2], solver
        assert all(e < 30 * tol for e, tol in zip(errors, (1e-4, 1e-6, 1e-8), strict=True)), solver


@pytest.mark.parametrize(
    "plan", [odelt.FixedSteps(2, "heun"), odelt.FixedSteps(adjoint="recompute")]
)
def test_the_gradient_of_a_weight_is_never_held_for_each_example(plan):
    """A batch of 64 with 64 x 64 weights: one gradient an example would be 1 MiB a block."""
    groups = [ODEBlock((LinearBlock(jnp.eye(64, dtype=jnp.float32)),)) for _ in range(2)]
    h, condition = jnp.ones((64, 1, 64), jnp.float32), jnp.zeros((64, 64), jnp.float32)

    def loss(groups):
        return jnp.sum(integrate_length(groups, h, condition, 2, plan)[0] ** 2)

    memory = jax.jit(jax.grad(loss)).lower(groups).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**20


def wide_gradient(size, adjoint="keep", layout=tuple):
    """Compile a gradient through two groups of blocks that compute 16 times as much as goes in."""
    weights = jax.random.normal(jax.random.key(0), (2, size, 16, 256), jnp.float32)
    groups = [ODEBlock(layout([WideBlock(w) for w in group])) for group in weights]
    h, condition = jnp.ones((8, 256, 16), jnp.float32), jnp.zeros((8, 16), jnp.float32)
    plan = odelt.FixedSteps(adjoint=adjoint)
    depth = 2 * size
    loss = lambda groups: jnp.sum(integrate_length(groups, h, condition, depth, plan)[0] ** 2)
    return jax.jit(jax.grad(loss)).lower(groups)


@pytest.mark.parametrize("layout", [tuple, Stack.of])
def test_recomputing_keeps_what_goes_into_blocks_alone(layout):
    held = lambda adjoint: wide_gradient(4, adjoint, layout).compile().memory_analysis()
    keep, recompute = held("keep"), held("recompute")
    assert recompute.temp_size_in_bytes < keep.temp_size_in_bytes / 2


def test_the_program_of_stacked_blocks_does_not_grow_with_their_number():
    lines = lambda size, layout: wide_gradient(size, layout=layout).as_text().count("\n")
    assert lines(8, Stack.of) == lines(3, Stack.of)
    assert lines(8, tuple) > 1.5 * lines(3, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": []}, "groups must be at least one ODEBlock; got none"),
        ({"condition": (0, 0)}, "one for each of 3 groups; got 2"),
        ({"depth": "plane"}, "depth must be a number of blocks or \"plain\"; got 'plane'"),
        ({"depth": "full"}, "depth must be a number of blocks or \"plain\"; got 'full'"),
        ({"depth": None}, 'depth must be a number of blocks or "plain"; got None'),
        ({"depth": (6, 2)}, r"depths must rise; got \(6, 2\)"),
        ({"depth": ()}, r"depths must rise; got \(\)"),
        ({"depth": 1}, r"depth must lie between 2 and 6 \(in blocks\), .*; got 1"),
        ({"depth": 7}, r"depth must lie between 2 and 6 \(in blocks\), .*; got 7"),
        ({"depth": (2, 8)}, r"depth must lie between 2 and 6 \(in blocks\), .*; got 8"),
        ({"depth": np.array([2, 0, 2, 2])}, "depth must lie between 2 and 6 .*; got 0"),
        ({"depth": jnp.array([2, 7, 2, 2])}, "depth must lie between 2 and 6 .*; got 7"),
        ({"depth": np.array([2])}, r"depth must be a number or have shape \(4,\); got \(1,\)"),
        ({"tolerance": 0.1}, "a tolerance needs a tuple of depths; got 2"),
        ({"hidden": 2}, "hidden needs a tuple of depths; got 2"),
        ({"depth": (2, 4), "tolerance": 0.0}, "a tolerance of the depth must be positive; got 0"),
        ({"depth": (2, 4), "tolerance": 0.1, "hidden": 2}, "leave out the tolerance"),
        ({"depth": (2, 4), "hidden": 6}, "hidden must lie between 2 and 4; got 6"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_groups_is_refused(any_types, groups, tokens, change, message):
    inputs = {"groups": groups, "h": jnp.asarray(tokens), "condition": jnp.zeros((BATCH, WIDTH))}
    inputs |= {"depth": 2, "plan": odelt.FixedSteps()}
    with pytest.raises(odelt.InputError, match=message):
        integrate_length(**inputs | change)


class WideBlock(eqx.Module):
    """`tokens + tanh(tokens A) A^T / 256`."""

    matrix: jax.Array

    def __call__(self, tokens, condition, *, key=None):
        return tokens + jnp.tanh(tokens @ self.matrix) @ self.matrix.T / 256
