"""The inner ODE: a stack of blocks integrated over the network's own length."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.ode.plan import Adaptive, Plan

Block = Callable[..., Float[Array, "tokens width"]]
"""`block(tokens, condition, key=None) -> tokens`, for one example."""

AnyBlock = TypeVar("AnyBlock", bound=Block)

State = tuple[Float[Array, "*batch tokens width"], Float[Array, "*batch tokens width"]]
"""`(h, u)`: the hidden tokens, and what they have accumulated so far."""


class ODEBlock(eqx.Module, Generic[AnyBlock]):
    r"""A group of `g` blocks as the vector field of one unit of length.

    With `p_0 = h` and `p_{j+1} = B_j(p_j, c)`:

    $$\frac{dh}{dl} = p_{g-1} + p_g - h, \qquad \frac{du}{dl} = p_g.$$

    One Euler step of size 1 gives `h <- p_{g-1} + p_g`, `u <- u + p_g`, the published method
    (arXiv 2506.21714). The field does not depend on `l`; it changes only where one group ends
    and the next begins, so the solve of one group never crosses an edge.
    """

    blocks: tuple[AnyBlock, ...]

    def field(
        self, length: Float[Array, ""], state: State, args: tuple[Array, Key[Array, ""] | None]
    ) -> State:
        """Return `(dh/dl, du/dl)` for one example; the dropout masks are the same everywhere."""
        del length
        (h, _), (condition, key) = state, args
        keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        before, after = h, h
        for block, block_key in zip(self.blocks, keys, strict=True):
            before, after = after, block(after, condition, key=block_key)
        return before + after - h, after

    @eqx.filter_jit
    def __call__(
        self,
        state: State,
        condition: Float[Array, " width"],
        plan: Plan,
        key: Key[Array, ""] | None = None,
    ) -> State:
        """Integrate `(h, u)` of one example over this group's unit of length.

        Args:
            state: `(h, u)`, each (tokens, width), float32.
            condition: what every block is modulated by, (width,).
            plan: the solver and its steps.
            key: dropout key, or None for no dropout.

        Returns:
            The state at the end of the unit.

        Raises:
            RuntimeError: an adaptive plan ran out of steps.
        """
        term = diffrax.ODETerm(self.field)  # pyright: ignore[reportArgumentType]
        solution = diffrax.diffeqsolve(
            term,
            t0=0.0,
            t1=1.0,
            y0=state,
            args=(condition, key),
            throw=False,
            **plan.arguments(),
        )
        end = jax.tree.map(lambda y: y[-1], solution.ys)
        if isinstance(plan, Adaptive):
            failed = solution.result != diffrax.RESULTS.successful
            end = eqx.error_if(end, failed, plan.failure("length"))
        return end


def integrate_length(
    groups: Sequence[ODEBlock],
    h: Float[Array, "batch tokens width"],
    condition: Float[Array, "batch width"],
    count: int | Int[np.ndarray, " batch"] | Int[Array, " batch"],
    plan: Plan,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch tokens width"]:
    """Solve the length ODE over the first `count` groups and return what `u` has accumulated.

    Args:
        groups: the stack, each integrated over its own unit of length.
        h: tokens of the batch, the state at l = 0; `u` starts at zero.
        condition: one vector per example, already including the length embedding.
        count: how many groups run. An int: for every example. A NumPy array, one per example and
            known while tracing: an example leaves the batch at its last edge, and nothing is
            computed for it afterwards. A JAX array, one per example: every group runs and the
            examples that are done keep their state.
        plan: the solver and its steps, the same in every group.
        key: dropout key, or None for no dropout.

    Returns:
        `u` at each example's last edge.
    """
    keys = None if key is None else jax.random.split(key, h.shape[0])
    state = (h, jnp.zeros_like(h))
    if isinstance(count, int):
        for k, group in enumerate(groups[:count]):
            state = _advance(group, k, state, condition, keys, plan)
        return state[1]
    if isinstance(count, np.ndarray):
        return _integrate_leaving(groups, state, condition, count, plan, keys)
    for k, group in enumerate(groups):
        ahead = _advance(group, k, state, condition, keys, plan)
        active = (k < count)[:, None, None]
        state = jax.tree.map(lambda new, old, on=active: jnp.where(on, new, old), ahead, state)
    return state[1]


def _integrate_leaving(
    groups: Sequence[ODEBlock],
    state: State,
    condition: Float[Array, "batch width"],
    count: Int[np.ndarray, " batch"],
    plan: Plan,
    keys: Key[Array, " batch"] | None,
) -> Float[Array, "batch tokens width"]:
    """Sort the batch, deepest first, and cut off the examples that are done at each edge."""
    order = np.argsort(-count, kind="stable")
    state, condition, keys = jax.tree.map(lambda x: x[order], (state, condition, keys))
    finished = []
    for k, group in enumerate(groups):
        staying = int(np.sum(count > k))
        finished.append(state[1][staying:])
        state, condition, keys = jax.tree.map(lambda x, n=staying: x[:n], (state, condition, keys))
        if staying == 0:
            break
        state = _advance(group, k, state, condition, keys, plan)
    finished.append(state[1])
    return jnp.concatenate(finished[::-1])[np.argsort(order)]


def _advance(
    group: ODEBlock,
    index: int,
    state: State,
    condition: Float[Array, "batch width"],
    keys: Key[Array, " batch"] | None,
    plan: Plan,
) -> State:
    """Integrate one group for every example of the batch."""

    def one(state: State, condition: Array, key: Key[Array, ""] | None) -> State:
        key = None if key is None else jax.random.fold_in(key, index)
        return group(state, condition, plan, key)

    return jax.vmap(one)(state, condition, keys)
