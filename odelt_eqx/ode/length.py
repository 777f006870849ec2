r"""The inner ODE: blocks integrated over the network's own length (arXiv 2506.21714).

The state is `(h, u)`: the hidden state, and what it has accumulated. Groups of blocks are vector
fields, each over one unit of length, solved one after another:

    h_0 = tokens, u_0 = 0;   group k:  dh/dl = p_{g-1} + p_g - h,   du/dl = p_g

with `p_0 = h` and `p_{j+1} = B_{kg+j}(p_j, c)`. The network's output is read from `u` where the
integration stops. Within a group the field is smooth and does not depend on `l`; it jumps where
one group ends and the next begins, so no solve crosses an edge.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Literal, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from odelt_eqx.ode.blocks import AnyBlock, Stack, run_scanned
from odelt_eqx.ode.plan import FixedSteps, Plan, without_recomputing

Tree = TypeVar("Tree")

Hidden = Float[Array, "batch *tokens width"]
State = tuple[Float[Array, "*batch width"], Float[Array, "*batch width"]]
"""`(h, u)`: the hidden state, and what it has accumulated."""


class LengthStats(eqx.Module):
    """What solving the length ODE took, one number per example.

    Args:
        solves: how often it was solved: once per evaluation of a network.
        depth: blocks in the groups that were integrated.
        blocks: block evaluations.
        failures: groups whose solve ran out of steps.
    """

    solves: Float[Array, " batch"]
    depth: Float[Array, " batch"]
    blocks: Float[Array, " batch"]
    failures: Float[Array, " batch"]


Carry = tuple[State, LengthStats]


class ODEBlock(eqx.Module, Generic[AnyBlock]):
    r"""A group of `g` blocks as the vector field of one unit of length.

    $$\frac{dh}{dl} = p_{g-1} + p_g - h, \qquad \frac{du}{dl} = p_g.$$

    One Euler step of size 1 gives `h <- p_{g-1} + p_g`, `u <- u + p_g`, the published method.

    Args:
        blocks: at least one module `block(h, condition, key=None) -> h` for one example. Those of
            a `Stack` are scanned.
    """

    blocks: tuple[AnyBlock, ...] | Stack[AnyBlock]

    def field(self, recompute: bool = False) -> Callable[..., State]:
        """Return `(l, state, (condition, key)) -> (dh/dl, du/dl)` for one example.

        Dropout masks are the same wherever it is evaluated. If it is to `recompute`, its gradient
        keeps only the input of each block.
        """
        # Unrolled, XLA's CPU backend keeps everything all the same.
        stack = Stack.of(self.blocks) if recompute or isinstance(self.blocks, Stack) else None

        def field(length: Array, state: State, args: tuple[Array, Key[Array, ""] | None]) -> State:
            del length
            (h, _), (condition, key) = state, args
            keys = None if key is None else jax.random.split(key, len(self.blocks))
            if stack is not None:
                previous, current = run_scanned(stack, recompute, h, condition, keys)
                return previous + current - h, current
            previous, current = h, h
            for j, block in enumerate(self.blocks):
                own = None if keys is None else keys[j]
                previous, current = current, block(current, condition, key=own)
            return previous + current - h, current

        return field

    @eqx.filter_jit
    def __call__(
        self,
        carry: Carry,
        condition: Float[Array, "batch features"],
        plan: Plan,
        keys: Key[Array, " batch"] | None = None,
    ) -> Carry:
        """Integrate `(h, u)` of a batch over this group's unit of length.

        The batch is one solve, so that the gradient of a weight is summed over the batch as it is
        computed, unless an adaptive plan is `per_example`.

        Args:
            carry: `(h, u)`, each (batch, *tokens, width), float32, and what was taken before.
            condition: what every block is given besides.
            keys: dropout keys, one per example, or None for no dropout.

        Returns:
            The state at the end of the unit, or where an adaptive plan ran out of steps, and what
            was taken in all.
        """

        def solve(field: Callable, state: State, args: tuple[Array, Array | None]) -> tuple:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),  # pyright: ignore[reportArgumentType]
                t0=0.0,
                t1=1.0,
                y0=state,
                args=args,
                throw=False,
                **without_recomputing(plan).arguments(),  # the field does it, block by block
            )
            failed = solution.result != diffrax.RESULTS.successful
            end = jax.tree.map(lambda y: y[-1], solution.ys)
            return end, solution.stats["num_steps"], failed

        (state, total), args = carry, (condition, keys)
        field = self.field(isinstance(plan, FixedSteps) and plan.adjoint == "recompute")
        if plan.per_example:
            end, steps, failed = jax.vmap(partial(solve, field))(state, args)
        else:
            batched = lambda length, *rest: jax.vmap(partial(field, length))(*rest)
            end, steps, failed = solve(batched, state, args)
        size = len(self.blocks)
        return end, LengthStats(
            solves=total.solves,
            depth=total.depth + size,
            blocks=total.blocks + size * jnp.asarray(plan.evaluations(steps), jnp.float32),
            failures=total.failures + failed.astype(jnp.float32),
        )


def integrate_length(
    groups: Sequence[ODEBlock],
    h: Hidden,
    condition: Float[Array, "batch features"],
    count: int | Literal["plain"] | Int[np.ndarray, " batch"] | Int[Array, " batch"],
    plan: Plan,
    keys: Key[Array, " batch"] | None = None,
    exit_tolerance: float | Float[Array, ""] | None = None,
) -> tuple[Hidden, LengthStats]:
    r"""Solve the length ODE over the first `count` groups and return `u`.

    Args:
        h: hidden state at l = 0.
        condition: what every block is given besides.
        count: how many groups are integrated. An int: for every example. A NumPy array (batch,),
            known while tracing: an example leaves the batch at its last edge, and nothing is
            computed for it afterwards. A JAX array (batch,): every group runs, and examples that
            are done keep their state. "plain": no ODE; every block runs once, in turn, `h <- B(h)`,
            and `h` is returned.
        keys: dropout keys, one per example, or None for no dropout.
        exit_tolerance: an example stops at the first edge where
            $\|\Delta u\| < \epsilon \|u\|$, with $\Delta u$ what the last group added; once all
            have stopped, no group runs any more. None: no example stops early.

    Returns:
        `u` at the last edge of each example, (batch, *tokens, width), and what it took.
    """
    zero = jnp.zeros(h.shape[0])
    carry = (h, jnp.zeros_like(h)), LengthStats(zero + 1, zero, zero, zero)
    if isinstance(count, str):
        carry = _run_plain(carry, groups, condition, keys)
    elif exit_tolerance is None and isinstance(count, int):
        for k, group in enumerate(groups[:count]):
            carry = group(carry, condition, plan, _fold(keys, k))
    elif exit_tolerance is None and isinstance(count, np.ndarray):
        carry = _integrate_leaving(carry, groups, condition, count, plan, keys)
    elif exit_tolerance is None:
        for k, group in enumerate(groups):
            new = group(carry, condition, plan, _fold(keys, k))
            carry = _where(k < jnp.asarray(count), new, carry)
    else:
        active = jnp.ones(h.shape[0], bool)
        for k, group in enumerate(groups[:count] if isinstance(count, int) else groups):
            active = active & (k < jnp.asarray(count))
            advance = partial(group, condition=condition, plan=plan, keys=_fold(keys, k))
            new = jax.lax.cond(jnp.any(active), advance, lambda carry: carry, carry)
            added = new[0][1] - carry[0][1]
            carry = _where(active, new, carry)
            active = active & (_norm(added) >= exit_tolerance * _norm(new[0][1]))
    (_, u), stats = carry
    return u, stats


def _run_plain(
    carry: Carry,
    groups: Sequence[ODEBlock],
    condition: Float[Array, "batch features"],
    keys: Key[Array, " batch"] | None,
) -> Carry:
    """Run every block once, in turn; the hidden state is what is read."""
    (h, _), total = carry
    blocks = [block for group in groups for block in group.blocks]
    for j, block in enumerate(blocks):
        run = lambda h, c, key, block=block: block(h, c, key=key)
        h = jax.vmap(run)(h, condition, _fold(keys, j))
    count = total.depth + len(blocks)
    return (h, h), LengthStats(total.solves, count, count, total.failures)


def _integrate_leaving(
    carry: Carry,
    groups: Sequence[ODEBlock],
    condition: Float[Array, "batch features"],
    count: Int[np.ndarray, " batch"],
    plan: Plan,
    keys: Key[Array, " batch"] | None,
) -> Carry:
    """Cut off the examples that are done at each edge.

    A batch of several parts that are alike, the deepest first in each, is cut in each part, so that
    parts on different devices stay where they are. Any other batch is sorted to one such part.
    """
    parts, order = _alike_parts(count), np.arange(len(count))
    if parts == 0:
        parts, order = 1, np.argsort(-count, kind="stable")
    running, count = take_rows((carry, condition, keys), order), count[order]
    count = count[: len(count) // parts]
    cut = lambda tree, rows: jax.tree.map(
        lambda x: x.reshape(parts, -1, *x.shape[1:])[:, rows].reshape(-1, *x.shape[1:]), tree
    )
    finished = []
    for k, group in enumerate(groups[: count.max(initial=0)]):
        staying = int(np.sum(count > k))
        finished.append(cut(running[0], slice(staying, None)))
        count = count[:staying]
        carry, condition, keys = cut(running, slice(staying))
        running = group(carry, condition, plan, _fold(keys, k)), condition, keys
    finished.append(running[0])

    def join(*pieces: Array) -> Array:
        each = [x.reshape(parts, -1, *x.shape[1:]) for x in pieces]
        return jnp.concatenate(each, axis=1).reshape(-1, *pieces[0].shape[1:])

    return take_rows(jax.tree.map(join, *finished[::-1]), np.argsort(order))


def _alike_parts(count: Int[np.ndarray, " batch"]) -> int:
    """Return of how many equal parts, each in descending order, a batch consists; 0 if of none."""
    for parts in range(1, len(count) + 1):
        rows = count[: len(count) // parts * parts].reshape(parts, -1)
        if len(count) % parts == 0 and (rows == rows[0]).all() and (np.diff(rows[0]) <= 0).all():
            return parts
    return 0


def _fold(keys: Key[Array, " batch"] | None, k: int) -> Key[Array, " batch"] | None:
    """Return the keys of group or block `k`."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)


def take_rows(tree: Tree, rows: Int[np.ndarray, " rows"]) -> Tree:
    """Return rows of every array; nothing is moved if they are already in order."""
    if np.array_equal(rows, np.arange(len(rows))):
        return tree
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _where(active: Bool[Array, " batch"], new: Tree, old: Tree) -> Tree:
    """Return the active rows of `new` and the other rows of `old`."""
    column = lambda x: active.reshape(-1, *(1,) * (x.ndim - 1))
    return jax.tree.map(lambda n, o: jnp.where(column(n), n, o), new, old)


def _norm(x: Float[Array, "batch *rest"]) -> Float[Array, " batch"]:
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))
