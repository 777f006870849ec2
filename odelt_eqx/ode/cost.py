"""What a solve really costs: counted inside it, for each example, rejected steps included."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Cost(eqx.Module):
    """What velocities took to evaluate, one number per example.

    Floats, because diffrax carries them, packed into one array, beside the state.

    Args:
        evaluations: network evaluations; a guided one counts twice.
        depth: blocks' worth of depth that the evaluations reached, summed over them.
        blocks: block evaluations.
        failures: length solves that ran out of steps.
    """

    evaluations: Float[Array, "*batch"]
    depth: Float[Array, "*batch"]
    blocks: Float[Array, "*batch"]
    failures: Float[Array, "*batch"]

    def packed(self) -> Float[Array, "4 *batch"]:
        """Return the numbers as one array."""
        return jnp.stack([self.evaluations, self.depth, self.blocks, self.failures])


def no_cost(batch: tuple[int, ...]) -> Cost:
    """Return a cost of nothing for a batch of that shape."""
    zero = jnp.zeros(batch)
    return Cost(zero, zero, zero, zero)


class CountedSolver(diffrax.AbstractWrappedSolver):
    """A solver of states `(y, cost)` whose field returns `(dy/dt, packed cost of evaluating it)`.

    The second half of what `step` returns is the cost of that step: diffrax keeps the increments
    `k = dt f` of a Runge-Kutta step's stages, and `sum(k) / dt` over the stages that were evaluated
    is what they took. The first stage of a first-same-as-last solver is taken over from the step
    before, if there was one.
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
        """Make a step from no cost and return its own in the second half."""
        y0 = (y0[0], jnp.zeros_like(y0[1]))
        y1, error, dense, after, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        if "k" in dense:
            stages = dense["k"][1]
            taken = jnp.sum(stages, axis=0)
            if self.solver.tableau.fsal:  # pyright: ignore[reportAttributeAccessIssue]
                first, _ = solver_state
                taken = taken - jnp.logical_not(first | made_jump) * stages[0]
        else:
            taken = y1[1]
        cost = jnp.round(jnp.abs(taken / (t1 - t0)))
        return (y1[0], cost), error, dense, after, result


class CountedSteps(diffrax.AbstractStepSizeController[Any, Any]):
    """The controller of a `CountedSolver`: sums up the cost of every step it sees.

    Only the state proper, not its cost, is what the error of a step is measured in. Its own state
    is `(state of the controller, accumulated cost)`.
    """

    controller: diffrax.AbstractStepSizeController

    def wrap(self, direction: Any) -> "CountedSteps":  # noqa: D102
        return CountedSteps(self.controller.wrap(direction))

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, order: Any
    ) -> tuple[Any, tuple[Any, Array]]:
        """Return the end of the first step, and no cost."""
        first, state = self.controller.init(terms, t0, t1, y0[0], dt0, args, func, order)
        return first, (state, jnp.zeros_like(y0[1]))

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> tuple[Any, ...]:
        """Let the controller decide and add what the step cost, accepted or not."""
        inner, total = state
        error = None if error is None else error[0]
        *decision, inner, result = self.controller.adapt_step_size(
            t0, t1, y0[0], y1[0], args, error, order, inner
        )
        return *decision, (inner, total + y1[1]), result


def accumulated(solution: diffrax.Solution) -> tuple[PyTree, Cost]:
    """Return the states that a counted solve saved, and what it cost."""
    states, _ = solution.ys  # pyright: ignore
    _, cost = solution.controller_state  # pyright: ignore
    return states, Cost(*cost)
