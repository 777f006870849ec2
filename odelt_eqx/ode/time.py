"""The outer ODE: a velocity field integrated from noise at t = 0 to data at t = 1, or back."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from equinox.internal import nondifferentiable_backward
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from odelt_eqx.ode.plan import Jumps, Plan

Field = Callable[[Float[Array, ""], PyTree, PyTree], PyTree]
"""`(t, y, args) -> dy/dt`: a scalar time, and arrays whose first axis is the batch."""

UNKNOWN_COUNT = (
    "a gradient needs a number of time steps that is known while tracing: make steps a Python int"
)


FINEST = 2.0**-12
"""Times that are nearer to each other than this share a Brownian motion's increment."""


class Noise(eqx.Module):
    """Noise that makes an SDE of an ODE: `scale(t) dW`, with a Brownian motion W per example.

    It belongs to the first array of the state.

    Args:
        scale: of the noise at a time.
        keys: decide the Brownian motions. They are the same however many steps there are.
    """

    scale: Callable[[Float[Array, ""]], Float[Array, ""]]
    keys: Key[Array, " batch"]


class _BrownianMotions(diffrax.AbstractPath[PyTree]):
    """The control of `Noise`, in the form of a state: zero for all arrays but the first."""

    keys: Key[Array, " batch"]
    state: PyTree
    t0: float = 0.0
    t1: float = 1.0

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """Return where the motions are at `t0`, or by how much they change up to `t1`."""
        del left, use_levy
        leaves, structure = jax.tree.flatten(self.state)
        size = math.prod(leaves[0].shape[1:])  # see `odelt_eqx.noise.normal`

        def motion(key: Key[Array, ""]) -> Any:
            path = diffrax.VirtualBrownianTree(0.0, 1.0, FINEST, (size,), key)
            return path.evaluate(t0, t1)

        moved = jax.vmap(motion)(self.keys).reshape(leaves[0].shape)
        return structure.unflatten([moved, *map(jnp.zeros_like, leaves[1:])])


def _noise_term(noise: Noise, y: PyTree) -> diffrax.ControlTerm:
    """Return `scale(t) dW` for states like `y`."""

    def scales(t: Any, y: PyTree, args: PyTree) -> lineax.DiagonalLinearOperator:
        del args
        scale = noise.scale(t)
        return lineax.DiagonalLinearOperator(jax.tree.map(lambda x: jnp.full_like(x, scale), y))

    return diffrax.ControlTerm(scales, _BrownianMotions(noise.keys, y))


class TimeSolution(eqx.Module):
    """A solve over time.

    Args:
        states: the state at each time asked for, (times, batch, ...).
        accepted: steps taken, for each example.
        rejected: steps tried and discarded, for each example.
        failed: whether the solve ran out of steps, for each example: its states are the last ones.
        controller_state: what the step size controller ended with.
    """

    states: PyTree
    accepted: Int[Array, " batch"]
    rejected: Int[Array, " batch"]
    failed: Bool[Array, " batch"]
    controller_state: PyTree


def integrate_time(
    field: Field,
    y: PyTree,
    plan: Plan,
    args: PyTree = None,
    *,
    backwards: bool = False,
    at: Float[Array, " times"] | None = None,
    jumps: Jumps | None = None,
    noise: Noise | None = None,
) -> TimeSolution:
    """Solve `dy/dt = field(t, y, args)` from t = 0 to t = 1.

    Args:
        y: state where the solve starts, float32: arrays whose first axis is the batch.
        plan: the solver and its steps. Examples share the steps unless it is `per_example`; then
            `field` is given batches of one.
        args: what else `field` needs: arrays whose first axis is the batch.
        backwards: solve from t = 1 to t = 0.
        at: times whose states are returned, in the order of the solve; None for its end alone.
        jumps: times where the field is not continuous, which an adaptive plan steps to.
        noise: makes it the SDE `dy = field(t, y, args) dt + scale(t) dW`, of fixed steps of one of
            the `STOCHASTIC` solvers.

    Example:
        >>> field = lambda t, y, rate: rate * y
        >>> plan = odelt.Adaptive(rtol=1e-5, atol=1e-5)
        >>> solution = odelt.integrate_time(field, jnp.ones((1, 1)), plan, args=jnp.ones((1, 1)))
        >>> print(f"{float(solution.states[-1, 0, 0]):.3f}")
        2.718
    """
    start, end = (1.0, 0.0) if backwards else (0.0, 1.0)
    arguments = plan.arguments(backwards, jumps)

    def solve(y: PyTree, args: PyTree) -> TimeSolution:
        terms: Any = diffrax.ODETerm(field)  # pyright: ignore[reportArgumentType]
        if noise is not None:
            terms = diffrax.MultiTerm(terms, _noise_term(noise, y))
        solution = diffrax.diffeqsolve(
            terms,
            t0=start,
            t1=end,
            y0=y,
            args=args,
            saveat=diffrax.SaveAt(t1=at is None, ts=at, controller_state=True),
            throw=False,
            **arguments,
        )
        states = solution.ys
        if arguments["max_steps"] is None:
            states = nondifferentiable_backward(states, msg=UNKNOWN_COUNT)
        share = partial(jnp.broadcast_to, shape=jax.tree.leaves(y)[0].shape[:1])
        return TimeSolution(
            states=states,
            accepted=share(solution.stats["num_accepted_steps"]),
            rejected=share(solution.stats["num_rejected_steps"]),
            failed=share(solution.result != diffrax.RESULTS.successful),
            controller_state=solution.controller_state,
        )

    if not plan.per_example:
        return solve(y, args)
    alone = jax.tree.map(lambda x: x[:, None], (y, args))
    solution = jax.vmap(solve)(*alone)
    return TimeSolution(
        states=jax.tree.map(lambda s: s[:, :, 0].swapaxes(0, 1), solution.states),
        accepted=solution.accepted[:, 0],
        rejected=solution.rejected[:, 0],
        failed=solution.failed[:, 0],
        controller_state=solution.controller_state,
    )
