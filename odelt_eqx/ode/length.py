"""The inner ODE: a stack of blocks integrated over the network's own length."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from odelt_eqx.ode.blocks import AnyBlock, Stack, in_loop, in_turn
from odelt_eqx.ode.dealing import deal, places, take
from odelt_eqx.ode.plan import Adaptive, FixedSteps, Plan
from odelt_eqx.sharding import devices_in_use, evenly

State = tuple[Float[Array, "*batch tokens width"], Float[Array, "*batch tokens width"]]
"""`(h, u)`: the hidden tokens, and what they have accumulated so far."""


class LengthCost(eqx.Module):
    """What the length ODE took, one number per example.

    Args:
        depth: blocks in the groups that were run: where the integration stopped.
        blocks: block evaluations.
        failures: groups whose solve ran out of steps.
    """

    depth: Float[Array, " batch"]
    blocks: Float[Array, " batch"]
    failures: Float[Array, " batch"]


class ODEBlock(eqx.Module, Generic[AnyBlock]):
    r"""A group of `g` blocks as the vector field of one unit of length.

    With `p_0 = h` and `p_{j+1} = B_j(p_j, c)`:

    $$\frac{dh}{dl} = p_{g-1} + p_g - h, \qquad \frac{du}{dl} = p_g.$$

    One Euler step of size 1 gives `h <- p_{g-1} + p_g`, `u <- u + p_g`, the published method
    (arXiv 2506.21714). The field does not depend on `l`; it changes only where one group ends
    and the next begins, so the solve of one group never crosses an edge.

    Args:
        blocks: at least one; from a `Stack` they are run as a loop.
    """

    blocks: tuple[AnyBlock, ...] | Stack[AnyBlock]

    def field(self, recompute: bool = False) -> Callable[..., State]:
        """Return `(l, state, (condition, key)) -> (dh/dl, du/dl)`, for one example.

        The dropout masks are the same wherever it is evaluated.

        Args:
            recompute: differentiating it keeps only what goes into each block.
        """
        if recompute or isinstance(self.blocks, Stack):
            # Without a loop XLA's CPU backend keeps everything all the same.
            run = partial(in_loop, Stack.of(self.blocks), recompute)
        else:
            run = partial(in_turn, self.blocks)

        def field(length: Array, state: State, args: tuple[Array, Key[Array, ""] | None]) -> State:
            del length
            (h, _), (condition, key) = state, args
            keys = None if key is None else jax.random.split(key, len(self.blocks))
            before, after = run(h, condition, keys)
            return before + after - h, after

        return field

    @eqx.filter_jit
    def __call__(
        self,
        state: State,
        condition: Float[Array, "batch width"],
        plan: Plan,
        keys: Key[Array, " batch"] | None = None,
    ) -> tuple[State, LengthCost]:
        """Integrate `(h, u)` of a batch over this group's unit of length.

        Fixed steps are one solve of the batch, so that the gradient of a weight is summed over the
        batch as it is computed. Under an adaptive plan each example has steps of its own.

        Args:
            state: `(h, u)`, each (batch, tokens, width), float32.
            condition: what every block is modulated by, (batch, width).
            plan: the solver and its steps.
            keys: dropout keys, one per example, or None for no dropout.

        Returns:
            The state at the end of the unit, or where an adaptive plan ran out of steps, and what
            it took.
        """

        def solve(field: Callable, state: State, args: tuple[Array, Array | None]) -> tuple:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),  # pyright: ignore[reportArgumentType]
                t0=0.0,
                t1=1.0,
                y0=state,
                args=args,
                throw=False,
                **plan.arguments(),
            )
            failed = solution.result != diffrax.RESULTS.successful
            end = jax.tree.map(lambda y: y[-1], solution.ys)
            return end, solution.stats["num_steps"], failed

        args = (condition, keys)
        if isinstance(plan, Adaptive):
            end, steps, failed = jax.vmap(partial(solve, self.field()))(state, args)
        else:
            field = self.field(isinstance(plan, FixedSteps) and plan.adjoint == "recompute")
            batched = lambda length, *rest: jax.vmap(partial(field, length))(*rest)
            end, steps, failed = solve(batched, state, args)
        size = len(self.blocks)
        counts = (size, size * plan.evaluations(steps), failed)
        as_floats = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), condition.shape[:1])
        return end, LengthCost(*map(as_floats, counts))


def integrate_length(
    groups: Sequence[ODEBlock],
    h: Float[Array, "batch tokens width"],
    condition: Float[Array, "batch width"],
    count: int | Int[np.ndarray, " batch"] | Int[Array, " batch"],
    plan: Plan,
    keys: Key[Array, " batch"] | None = None,
    exit_tolerance: float | Float[Array, ""] | None = None,
) -> tuple[Float[Array, "batch tokens width"], LengthCost]:
    r"""Solve the length ODE over the first `count` groups and return what `u` has accumulated.

    Args:
        groups: the stack, each integrated over its own unit of length.
        h: tokens of the batch, the state at l = 0; `u` starts at zero.
        condition: one vector per example, already including the length embedding.
        count: how many groups run. An int: for every example. A NumPy array, one per example and
            known while tracing: an example leaves the batch at its last edge, and nothing is
            computed for it afterwards. A JAX array, one per example: every group runs and the
            examples that are done keep their state.
        plan: the solver and its steps, the same in every group.
        keys: dropout keys, one per example, or None for no dropout.
        exit_tolerance: an example stops at the first edge where
            $\|\Delta u\| < \epsilon \|u\|$, with $\Delta u$ what the last group added; once all
            have stopped, no group runs any more. None: no example stops early.

    Returns:
        `u` at each example's last edge, and what it took.
    """
    zero = jnp.zeros(h.shape[0])
    state, cost = (h, jnp.zeros_like(h)), LengthCost(zero, zero, zero)
    if exit_tolerance is None and isinstance(count, np.ndarray):
        return _integrate_leaving(groups, state, cost, condition, count, plan, keys)
    if exit_tolerance is None and isinstance(count, int):
        for k, group in enumerate(groups[:count]):
            state, cost = _advance(group, k, state, cost, condition, keys, plan)
        return state[1], cost
    groups = groups[:count] if isinstance(count, int) else groups
    active = jnp.ones(h.shape[0], bool)
    for k, group in enumerate(groups):
        active = active & (k < jnp.asarray(count))
        here = (state, cost)

        def ahead(
            here: tuple[State, LengthCost], k: int = k, group: ODEBlock = group
        ) -> tuple[State, LengthCost]:
            return _advance(group, k, *here, condition, keys, plan)

        if exit_tolerance is None:
            there = ahead(here)
        else:
            there = jax.lax.cond(jnp.any(active), ahead, lambda here: here, here)
        state, cost = jax.tree.map(partial(_where, active), there, here)
        if exit_tolerance is not None:
            added = jnp.linalg.norm(state[1] - here[0][1], axis=(1, 2))
            active = active & (added >= exit_tolerance * jnp.linalg.norm(state[1], axis=(1, 2)))
    return state[1], cost


def _where(active: Bool[Array, " batch"], new: Array, old: Array) -> Array:
    """Return the rows of `new` that are active and the others of `old`."""
    return jnp.where(active.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _integrate_leaving(
    groups: Sequence[ODEBlock],
    state: State,
    cost: LengthCost,
    condition: Float[Array, "batch width"],
    count: Int[np.ndarray, " batch"],
    plan: Plan,
    keys: Key[Array, " batch"] | None,
) -> tuple[Float[Array, "batch tokens width"], LengthCost]:
    """Deal out the batch, deepest first, and cut off the examples that are done at each edge.

    Each device has a part of its own, so that what is cut off is never sent anywhere.
    """
    parts = devices_in_use()
    dealt, counts = deal(count, parts)
    running, count = take((state, cost, condition, keys), dealt), count[dealt[0]]
    finished = []
    for k, group in enumerate(groups):
        staying = int(np.sum(count > k))
        (_, u), cost, *_ = running
        finished.append(jax.tree.map(partial(_cut, parts, slice(staying, None)), (u, cost)))
        running = jax.tree.map(partial(_cut, parts, slice(staying)), running)
        if staying == 0:
            break
        state, cost, condition, keys = running
        running = (*_advance(group, k, state, cost, condition, keys, plan), condition, keys)
    (_, u), cost, *_ = running
    finished.append((u, cost))
    whole = jax.tree.map(partial(_joined, parts), *finished[::-1])
    return take(whole, places(dealt, counts))


def _cut(parts: int, rows: slice, x: Array) -> Array:
    """Return these rows of every part of `x`."""
    each = x.reshape(parts, -1, *x.shape[1:])[:, rows]
    return evenly(each.reshape(-1, *x.shape[1:]))


def _joined(parts: int, *pieces: Array) -> Array:
    """Return every part whole again."""
    each = [x.reshape(parts, -1, *x.shape[1:]) for x in pieces]
    return evenly(jnp.concatenate(each, axis=1).reshape(-1, *pieces[0].shape[1:]))


def _advance(
    group: ODEBlock,
    index: int,
    state: State,
    cost: LengthCost,
    condition: Float[Array, "batch width"],
    keys: Key[Array, " batch"] | None,
    plan: Plan,
) -> tuple[State, LengthCost]:
    """Integrate one group for every example of the batch, and add what it took to the cost."""
    keys = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
    state, taken = group(state, condition, plan, keys)
    return state, jax.tree.map(jnp.add, cost, taken)
