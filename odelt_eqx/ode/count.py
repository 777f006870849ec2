"""The exact cost of a solve over time, counted inside it, and the error that it estimates.

`integrate_time_counted` wraps the plan of an `integrate_time`; neither that nor the length ODE
knows of it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from odelt_eqx.ode.length import LengthStats
from odelt_eqx.ode.plan import Jumps, Plan
from odelt_eqx.ode.time import TimeSolution, integrate_time


def integrate_time_counted(
    field: Callable[..., tuple[PyTree, LengthStats]],
    y: PyTree,
    plan: Plan,
    args: PyTree = None,
    **kwargs: Any,
) -> tuple[TimeSolution, LengthStats, Float[Array, " batch"]]:
    """Return what `integrate_time` does, what all evaluations of the field took, and the error.

    The field is `(t, y, args) -> (dy/dt, stats)`; all else is as for `integrate_time`. What was
    taken is summed over all evaluations, those of rejected steps included. The error is the root
    mean square of what the solver estimates for a step, summed over the accepted steps; 0 if it
    estimates none.
    """

    def with_counts(t: Array, state: tuple[PyTree, Array], args: PyTree) -> tuple[PyTree, Array]:
        dy, stats = field(t, state[0], args)
        # diffrax carries one packed array of floats faster than five.
        return dy, jnp.stack(jax.tree.leaves(stats), axis=1)

    numbers = jax.eval_shape(lambda: LengthStats.zeros(1))  # no hidden state is asked for
    fields = len(jax.tree.leaves(numbers))
    counts = jnp.zeros((len(jax.tree.leaves(y)[0]), fields))
    counting = CountingPlan(plan)  # pyright: ignore[reportCallIssue]
    solution = integrate_time(with_counts, (y, counts), counting, args, **kwargs)
    _, total, error = solution.controller_state
    states, _ = solution.states
    solution = dataclasses.replace(solution, states=states)
    *counted, depth_error = total.reshape(-1, fields).T
    cost = LengthStats(*map(jnp.round, counted), error=depth_error)
    return solution, cost, error.reshape(-1)


class CountingPlan(Plan):
    """A plan for states `(y, counts)` whose field returns `(dy/dt, counts of evaluating it)`."""

    plan: Plan

    @property
    def solver(self) -> str:  # noqa: D102
        return self.plan.solver

    @property
    def per_example(self) -> bool:  # noqa: D102
        return self.plan.per_example

    def arguments(self, backwards: bool = False, jumps: Jumps | None = None) -> dict[str, Any]:  # noqa: D102
        arguments = self.plan.arguments(backwards, jumps)
        return arguments | {
            "solver": CountingSolver(arguments["solver"]),
            "stepsize_controller": CountingController(arguments["stepsize_controller"]),
        }


class CountingSolver(diffrax.AbstractWrappedSolver):
    """A solver whose `step` returns the counts of that step in the second half of the state.

    diffrax keeps the increments `k = dt f` of the stages of a Runge-Kutta step, and `sum(k) / dt`
    over the stages that were evaluated is what they took. A first-same-as-last solver reuses the
    last stage of the previous step as its first, if there was one. A multistep solver evaluates its
    newest slope alone.
    """

    solver: diffrax.AbstractSolver

    @property
    def term_structure(self) -> Any:  # noqa: D102
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # noqa: D102
        return self.solver.interpolation_cls

    def order(self, terms: Any) -> int | None:  # noqa: D102
        return self.solver.order(terms)

    def strong_order(self, terms: Any) -> Any:  # noqa: D102
        return self.solver.strong_order(terms)

    def error_order(self, terms: Any) -> Any:  # noqa: D102
        return self.solver.error_order(terms)

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:  # noqa: D102
        return self.solver.func(terms, t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:  # noqa: D102
        return self.solver.init(terms, t0, t1, y0, args)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, ...]:
        """Make a step that starts from counts of zero."""
        y0 = (y0[0], jnp.zeros_like(y0[1]))
        y1, error, dense, new_state, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        if "k" in dense:
            stages = dense["k"][1]
            taken = jnp.sum(stages, axis=0)
            if self.solver.tableau.fsal:  # pyright: ignore[reportAttributeAccessIssue]
                first, _ = solver_state
                taken = jnp.where(first | made_jump, taken, taken - stages[0])
        elif "increments" in dense:  # of a multistep solver, the newest first
            taken = dense["increments"][1][0]
        else:
            taken = y1[1]
        counts = jnp.abs(taken / (t1 - t0))
        return (y1[0], counts), error, dense, new_state, result


class CountingController(diffrax.AbstractStepSizeController[Any, Any]):
    """The controller of a `CountingSolver`: sums the counts of every step, accepted or not.

    The error of a step is measured on the state alone. Its own state is
    `(state of the wrapped controller, summed counts, summed errors of accepted steps)`.
    """

    controller: diffrax.AbstractStepSizeController

    def wrap(self, direction: Any) -> "CountingController":  # noqa: D102
        return CountingController(self.controller.wrap(direction))

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, order: Any
    ) -> tuple[Any, tuple[Any, Array, Array]]:
        """Return the end of the first step, and counts of zero."""
        first, state = self.controller.init(terms, t0, t1, y0[0], dt0, args, func, order)
        return first, (state, jnp.zeros_like(y0[1]), jnp.zeros_like(y0[1][:, 0]))

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> tuple[Any, ...]:
        """Let the wrapped controller decide and add the counts of the step."""
        inner, total, errors = state
        error = None if error is None else error[0]
        accepted, *decision, inner, result = self.controller.adapt_step_size(
            t0, t1, y0[0], y1[0], args, error, order, inner
        )
        if error is not None:
            errors = errors + jnp.where(accepted, _rms(error), 0)
        return accepted, *decision, (inner, total + y1[1], errors), result


def _rms(tree: PyTree) -> Float[Array, " batch"]:
    """Return the root mean square of all values of each example."""
    rows = [leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.mean(jnp.concatenate(rows, axis=1) ** 2, axis=1))
