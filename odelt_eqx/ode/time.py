"""The outer ODE: from noise at t = 0 to data at t = 1 along a velocity field."""

from typing import Protocol, runtime_checkable

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from odelt_eqx.ode.plan import Plan, traced


@runtime_checkable
class Velocity(Protocol):
    """What the time ODE, the objectives and the samplers see of a network."""

    def __call__(
        self,
        t: Float[Array, " batch"],
        x: Float[Array, "batch *shape"],
        step_index: Real[Array, " batch"],
        labels: Int[Array, " batch"],
    ) -> Float[Array, "batch *shape"]:
        """Return dx/dt at `x` and `t` under `labels`, for steps of size `2 ** -step_index`."""
        ...


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
    if isinstance(guidance, int | float) and guidance in (0, 1):
        labels = labels if guidance == 1 else jnp.full_like(labels, null_label)
        return velocity(t, x, step_index, labels)
    both = jnp.concatenate([labels, jnp.full_like(labels, null_label)])
    twice = lambda a: jnp.concatenate([a, a])
    v_label, v_null = jnp.split(velocity(twice(t), twice(x), twice(step_index), both), 2)
    return v_null + guidance * (v_label - v_null)


def integrate_time(
    velocity: Velocity,
    x: Float[Array, "batch *shape"],
    labels: Int[Array, " batch"],
    plan: Plan,
    *,
    flow_index: int,
    null_label: int,
    guidance: float | Float[Array, ""] = 1.0,
    backwards: bool = False,
    at: Float[Array, " times"] | None = None,
) -> diffrax.Solution:
    """Solve `dx/dt = v(t, x)` from t = 0 to t = 1, or back.

    Args:
        velocity: the network.
        x: the state where the solve starts, float32.
        labels: the classes asked for.
        plan: the solver and its steps; one step size for the whole batch.
        flow_index: the step index of the flow field itself.
        null_label: the class that stands for "no class".
        guidance: classifier-free guidance weight, see `guided_velocity`.
        backwards: solve from t = 1 to t = 0.
        at: times whose states are asked for, in the order of the solve; None for its end alone.

    Returns:
        diffrax's solution: `ys[-1]` is the last state asked for, `result` says whether the solve
        got to its end.
    """
    plan = traced(plan)
    batch = x.shape[:1]
    step_index = jnp.broadcast_to(jnp.asarray(plan.step_index(flow_index), jnp.int32), batch)

    def field(t: Float[Array, ""], x: Array, _args: None) -> Array:
        times = jnp.broadcast_to(jnp.asarray(t, jnp.float32), batch)
        return guided_velocity(velocity, times, x, step_index, labels, null_label, guidance)

    term = diffrax.ODETerm(field)  # pyright: ignore[reportArgumentType]
    start, end = (1.0, 0.0) if backwards else (0.0, 1.0)
    return diffrax.diffeqsolve(
        term,
        t0=start,
        t1=end,
        y0=x,
        saveat=diffrax.SaveAt(t1=True) if at is None else diffrax.SaveAt(ts=at),
        throw=False,
        **plan.arguments(backwards),
    )
