"""The outer ODE: from noise at t = 0 to data at t = 1 along a velocity field."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from odelt_eqx.ode.cost import Cost, CountedSolver, CountedSteps, accumulated, no_cost
from odelt_eqx.ode.plan import Plan, traced


@runtime_checkable
class Velocity(Protocol):
    """What the objectives see of a network."""

    def __call__(
        self,
        t: Float[Array, " batch"],
        x: Float[Array, "batch *shape"],
        step_index: Real[Array, " batch"],
        labels: Int[Array, " batch"],
    ) -> Float[Array, "batch *shape"]:
        """Return dx/dt at `x` and `t` under `labels`, for steps of size `2 ** -step_index`."""
        ...


class SolveStats(NamedTuple):
    """What a solve over time took, for each example.

    Where the batch shares its steps, all examples have the same numbers of them. Where each has its
    own, the batch is evaluated until the last is done: the largest number is what it waits for.

    Attributes:
        accepted: time steps that were taken.
        rejected: time steps that were tried and thrown away.
        evaluations: network evaluations; a guided one counts twice.
        blocks: block evaluations, over all network evaluations.
        depth: depth in blocks that a network evaluation reached, on average.
        time_failed: the time solve ran out of steps: the states are those it got to.
        length_failed: a length solve did.
    """

    accepted: Int[Array | np.ndarray, " batch"]
    rejected: Int[Array | np.ndarray, " batch"]
    evaluations: Int[Array | np.ndarray, " batch"]
    blocks: Int[Array | np.ndarray, " batch"]
    depth: Float[Array | np.ndarray, " batch"]
    time_failed: Bool[Array | np.ndarray, " batch"]
    length_failed: Bool[Array | np.ndarray, " batch"]

    @property
    def counts(self) -> dict[str, Array | np.ndarray]:
        """What was counted, by the name a reader knows it by."""
        return {
            "time steps": self.accepted,
            "rejected steps": self.rejected,
            "network evaluations": self.evaluations,
            "block evaluations": self.blocks,
            "depth reached": self.depth,
        }


def solve_stats(
    accepted: Int[Array, " batch"],
    rejected: Int[Array, " batch"],
    time_failed: Bool[Array, " batch"],
    cost: Cost,
) -> SolveStats:
    """Return the statistics of a solve from its steps and what its evaluations took in all."""
    return SolveStats(
        accepted=accepted,
        rejected=rejected,
        evaluations=cost.evaluations.astype(jnp.int32),
        blocks=cost.blocks.astype(jnp.int32),
        depth=cost.depth / jnp.maximum(cost.evaluations, 1),
        time_failed=time_failed,
        length_failed=cost.failures > 0,
    )


class TimeSolution(eqx.Module):
    """A solve over time.

    Args:
        states: the state at each time asked for.
        stats: what it took.
    """

    states: Any
    stats: SolveStats


def guided_velocity(
    velocity: Velocity,
    t: Float[Array, " batch"],
    x: Float[Array, "batch *shape"],
    step_index: Real[Array, " batch"],
    labels: Int[Array, " batch"],
    null_label: int,
    guidance: float | Float[Array, ""],
) -> Float[Array, "batch *shape"]:
    r"""Classifier-free guidance, $v = v_\emptyset + w (v_y - v_\emptyset)$ (arXiv 2207.12598).

    Args:
        velocity: the network.
        t: times, one per example.
        x: states.
        step_index: step indices, one per example.
        labels: the classes asked for.
        null_label: the class that stands for "no class".
        guidance: `w`. The Python numbers 1 and 0 run the labels alone and the null label alone;
            any other number, and every array, runs both halves in one batch.
    """
    costless = lambda *args: (velocity(*args), None)
    return guided_with_cost(costless, t, x, step_index, labels, null_label, guidance)[0]


def guided_with_cost(
    velocity: Callable,
    t: Float[Array, " batch"],
    x: Float[Array, "batch *shape"],
    step_index: Real[Array, " batch"],
    labels: Int[Array, " batch"],
    null_label: int,
    guidance: float | Float[Array, ""],
) -> tuple[Float[Array, "batch *shape"], Any]:
    """Return what `guided_velocity` does, and the sum of what both halves took."""
    if isinstance(guidance, int | float) and guidance in (0, 1):
        labels = labels if guidance == 1 else jnp.full_like(labels, null_label)
        return velocity(t, x, step_index, labels)
    both = jnp.concatenate([labels, jnp.full_like(labels, null_label)])
    twice = lambda a: jnp.concatenate([a, a])
    v, cost = velocity(twice(t), twice(x), twice(step_index), both)
    v_label, v_null = jnp.split(v, 2)
    cost = jax.tree.map(lambda c: sum(jnp.split(c, 2)), cost)
    return v_null + guidance * (v_label - v_null), cost


def integrate_time(
    field: Callable[[Float[Array, " batch"], Any, Int[Array, " batch"]], tuple[Any, Cost]],
    y: Any,
    plan: Plan,
    *,
    flow_index: int,
    backwards: bool = False,
    at: Float[Array, " times"] | None = None,
) -> TimeSolution:
    """Solve `dy/dt = f(t, y)` from t = 0 to t = 1, or back; the batch shares its steps.

    Args:
        field: `(t, y, step_index) -> (dy/dt, cost)`, times and step indices one per example.
        y: the state where the solve starts, float32: arrays whose first axis is the batch.
        plan: the solver and its steps.
        flow_index: the step index of the flow field itself.
        backwards: solve from t = 1 to t = 0.
        at: times whose states are asked for, in the order of the solve; None for its end alone.
    """
    plan = traced(plan)
    batch = jax.tree.leaves(y)[0].shape[:1]
    step_index = jnp.broadcast_to(jnp.asarray(plan.step_index(flow_index), jnp.int32), batch)

    def derivative(t: Float[Array, ""], state: tuple[Any, Array], _args: None) -> tuple[Any, Array]:
        dy, cost = field(jnp.broadcast_to(t, batch), state[0], step_index)
        return dy, cost.packed()

    arguments = plan.arguments(backwards)
    arguments["solver"] = CountedSolver(arguments["solver"])
    arguments["stepsize_controller"] = CountedSteps(arguments["stepsize_controller"])
    start, end = (1.0, 0.0) if backwards else (0.0, 1.0)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),  # pyright: ignore[reportArgumentType]
        t0=start,
        t1=end,
        y0=(y, no_cost(batch).packed()),
        saveat=diffrax.SaveAt(t1=at is None, ts=at, controller_state=True),
        throw=False,
        **arguments,
    )
    states, cost = accumulated(solution)
    shared = lambda x: jnp.broadcast_to(x, batch)
    stats = solve_stats(
        shared(solution.stats["num_accepted_steps"]),
        shared(solution.stats["num_rejected_steps"]),
        shared(solution.result != diffrax.RESULTS.successful),
        cost,
    )
    return TimeSolution(states, stats)


def one_by_one(solve: Callable[..., TimeSolution]) -> Callable[..., TimeSolution]:
    """Return `solve` with each example in a batch of its own, so that its steps are its own.

    Args:
        solve: a function of arrays whose first axis is the batch, and of anything else, which is
            the same for all.
    """

    def all_alone(*args: Any) -> TimeSolution:
        mapped, shared = eqx.partition(args, eqx.is_array)

        def alone(mapped: Any) -> tuple[Any, SolveStats]:
            one = jax.tree.map(lambda a: a[None], mapped)
            solution = solve(*eqx.combine(one, shared))
            states = jax.tree.map(lambda s: s[:, 0], solution.states)
            return states, jax.tree.map(lambda s: s[0], solution.stats)

        return TimeSolution(*jax.vmap(alone, out_axes=(1, 0))(mapped))

    return all_alone
