r"""The inner ODE: blocks integrated over the network's own length (arXiv 2506.21714).

The state is `(h, u)`: the hidden state, and what it has accumulated. Groups of blocks are vector
fields, each over one unit of length, solved one after another:

    h_0 = tokens, u_0 = 0;   group k:  dh/dl = p_{g-1} + p_g - h,   du/dl = p_g

with `p_0 = h` and `p_{j+1} = B_{kg+j}(p_j, c)`. The network's output is read from `u` where the
integration stops, or at every edge that it passes. Within a group the field is smooth and does not
depend on `l`; it jumps where one group ends and the next begins, so no solve crosses an edge.

That is the published wiring, "accumulate". In the other, "residual", the state is `h` alone, which
is also what is read: `dh/dl = p_g - h`. One Euler step per group is then a plain transformer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Literal, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from odelt_eqx.errors import InputError, check_choices
from odelt_eqx.ode.blocks import AnyBlock, Stack, run_scanned
from odelt_eqx.ode.checks import check_depth, check_groups, check_options
from odelt_eqx.ode.plan import FixedSteps, Plan, without_recomputing

Tree = TypeVar("Tree")

Hidden = Float[Array, "batch *tokens width"]
State = tuple[Float[Array, "*batch width"], ...]
"""`(h, u)`, the hidden state and what it has accumulated, or `(h,)`. The last one is read."""
Wiring = Literal["accumulate", "residual"]
GroupConditions = Float[Array, "batch features"] | tuple[Float[Array, "batch features"], ...]
LengthDepth = (
    int | Literal["plain"] | tuple[int, ...] | Int[np.ndarray, " batch"] | Int[Array, " batch"]
)

Read = Callable[[Hidden, LengthDepth], Array]


class LengthStats(eqx.Module):
    """What solving the length ODE took, one number per example, and a state that was asked for.

    Args:
        solves: how often it was solved: once per evaluation of a network.
        depth: blocks in the groups that were integrated.
        blocks: block evaluations.
        failures: groups whose solve ran out of steps.
        error: root mean square of the last change of what was read, where a tolerance chose the
            depth; 0 elsewhere.
        hidden: the hidden state `h` at the depth where it was asked for, or None.
        by_tolerance: whether a tolerance chose the depth.
    """

    solves: Float[Array, " batch"]
    depth: Float[Array, " batch"]
    blocks: Float[Array, " batch"]
    failures: Float[Array, " batch"]
    error: Float[Array, " batch"]
    hidden: Hidden | None = None
    by_tolerance: bool = eqx.field(static=True, default=False)

    @classmethod
    def zeros(cls, batch_size: int) -> "LengthStats":
        """Return the statistics of no solve."""
        return cls(*jnp.zeros((5, batch_size)))


Carry = tuple[State, LengthStats]


class ODEBlock(eqx.Module, Generic[AnyBlock]):
    r"""A group of `g` blocks as the vector field of one unit of length.

    $$\frac{dh}{dl} = p_{g-1} + p_g - h, \qquad \frac{du}{dl} = p_g.$$

    One Euler step of size 1 gives `h <- p_{g-1} + p_g`, `u <- u + p_g`, the published method. In
    the wiring "residual" the state is `h` alone, $dh/dl = p_g - h$, and that step is `h <- p_g`.

    Args:
        blocks: at least one module `block(h, condition, key=None) -> h` for one example. Those of
            a `Stack` are scanned.
        wiring: "accumulate" or "residual", the same for all groups of a network.

    Raises:
        InputError: `wiring` is neither, or there are no blocks.

    Example:
        >>> double = lambda h, c, key=None: 2 * h
        >>> group = odelt.ODEBlock((double, double), wiring="residual")
        >>> h, c = jnp.ones((1, 3)), jnp.zeros((1, 1))
        >>> odelt.integrate_length([group], h, c, 2, odelt.FixedSteps())[0].tolist()
        [[4.0, 4.0, 4.0]]
    """

    blocks: tuple[AnyBlock, ...] | Stack[AnyBlock]
    wiring: Wiring = eqx.field(static=True, default="accumulate")

    def __check_init__(self) -> None:
        check_choices(self)
        if not isinstance(self.blocks, tuple | list | Stack) or not len(self.blocks):
            raise InputError(f"blocks must be a tuple of at least one block; got {self.blocks!r}")

    def start(self, h: Hidden) -> State:
        """Return the state at l = 0."""
        return (h, jnp.zeros_like(h)) if self.wiring == "accumulate" else (h,)

    def field(self, recompute: bool = False) -> Callable[..., State]:
        """Return `(l, state, (condition, key)) -> (dh/dl, du/dl)` for one example.

        Dropout masks are the same wherever it is evaluated. If it is to `recompute`, its gradient
        keeps only the input of each block.
        """
        # Unrolled, XLA's CPU backend keeps everything all the same.
        scan = isinstance(self.blocks, Stack) or (recompute and Stack.fits(self.blocks))
        stack = Stack.of(self.blocks) if scan else None

        def field(length: Array, state: State, args: tuple[Array, Key[Array, ""] | None]) -> State:
            del length
            h, (condition, key) = state[0], args
            keys = None if key is None else jax.random.split(key, len(self.blocks))
            if stack is not None:
                previous, current = run_scanned(stack, recompute, h, condition, keys)
            else:
                previous, current = h, h
                for j, block in enumerate(self.blocks):
                    own = None if keys is None else keys[j]
                    run = eqx.filter_checkpoint(block) if recompute else block
                    previous, current = current, run(current, condition, key=own)
            if self.wiring == "residual":
                return (current - h,)
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
        """Integrate the state of a batch over this group's unit of length.

        The batch is one solve, so that the gradient of a weight is summed over the batch as it is
        computed, unless an adaptive plan is `per_example`.

        Args:
            carry: the state, each part (batch, *tokens, width), float32, and what was taken before.
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
            error=total.error,
        )


def integrate_length(
    groups: Sequence[ODEBlock],
    h: Hidden,
    condition: GroupConditions,
    depth: LengthDepth,
    plan: Plan,
    read: Read = lambda u, depth: u,
    *,
    keys: Key[Array, " batch"] | None = None,
    tolerance: float | Float[Array, ""] | None = None,
    hidden: int | None = None,
) -> tuple[Array, LengthStats]:
    r"""Solve the length ODE up to a depth and return what is read from `u` there.

    Args:
        h: hidden state at l = 0.
        groups: at least one.
        condition: what every block is given besides, or a tuple with that of each group.
        depth: blocks, from the end of the first group to that of the last; groups that are not full
            within it do not run. An int: for every example. A NumPy array (batch,), known while
            tracing: an example leaves the batch at its last edge, and nothing is computed for it
            afterwards. A JAX array (batch,): every group runs, and examples that are done keep
            their state. A tuple of rising ints: one integration, read at each of them. "plain": no
            ODE; every block runs once, in turn, `h <- B(h)`, and the last `h` is read.
        read: `(u, depth) -> output`, with `u` of the batch, (batch, *tokens, width), and the depth
            where it is read: `depth`, or one of the tuple. By default `u` itself.
        keys: dropout keys, one per example, or None for no dropout.
        tolerance: with a tuple of depths, an example stops at the first of them, the second or
            later, where what is read changed by less than this share of it, and is read there for
            all that follow; once all have stopped, no group runs any more. The change is an
            estimate of the error. A depth that ends in the same group as the one before is passed.
            None: no example stops early.
        hidden: with a tuple of depths and no tolerance, a depth up to the last of them at which the
            hidden state `h` is kept, as `LengthStats.hidden`.

    Returns:
        What is read, (batch, ...), or (depths, batch, ...) for a tuple, and what it took.

    Raises:
        InputError: there are no groups, or the condition or what is known of the depth does not fit
            them.

    Example:
        >>> half = odelt.ODEBlock((lambda h, c, key=None: h / 2,), wiring="residual")
        >>> h, c = jnp.ones((1, 2)), jnp.zeros((1, 1))
        >>> u, stats = odelt.integrate_length([half, half], h, c, (1, 2), odelt.FixedSteps())
        >>> u.tolist()
        [[[0.5, 0.5]], [[0.25, 0.25]]]
    """
    check_groups(groups, condition)
    once = dataclasses.replace(LengthStats.zeros(len(h)), solves=jnp.ones(len(h)))
    carry = groups[0].start(h), once
    ends = np.cumsum([len(group.blocks) for group in groups])
    count = lambda depth: np.searchsorted(ends, depth, side="right")
    check_depth(depth, ends, len(h))
    check_options(depth, ends, tolerance, hidden)

    def advance(carry: Carry, start: int, end: int) -> Carry:
        for k in range(start, end):
            carry = groups[k](carry, _of_group(condition, k), plan, _fold(keys, k))
        return carry

    if isinstance(depth, tuple):
        edges = [(int(count(d)), lambda u, d=d: read(u, d)) for d in depth]
        kept = None if hidden is None else int(count(hidden))
        return _read_edges(carry, advance, edges, tolerance, kept)
    if isinstance(depth, str):
        carry = _run_plain(carry, groups, condition, keys)
    elif isinstance(depth, int):
        carry = advance(carry, 0, int(count(depth)))
    elif isinstance(depth, np.ndarray):
        carry = _integrate_leaving(carry, groups, condition, count(depth), plan, keys)
    else:
        for k in range(len(groups)):
            carry = _where(ends[k] <= jnp.asarray(depth), advance(carry, k, k + 1), carry)
    state, stats = carry
    return read(state[-1], depth), stats


def _read_edges(
    carry: Carry,
    advance: Callable[[Carry, int, int], Carry],
    edges: Sequence[tuple[int, Callable[[Hidden], Array]]],
    tolerance: float | Float[Array, ""] | None,
    kept: int | None = None,
) -> tuple[Array, LengthStats]:
    """Return what is read after each of some numbers of groups, and what it took.

    The hidden state after `kept` groups is part of the latter.
    """
    outputs: list[Array] = []
    hidden = None
    active, start = jnp.ones(carry[0][0].shape[0], bool), 0
    for end, read in edges:
        if kept is not None and start <= kept <= end:
            carry, start, kept = advance(carry, start, kept), kept, None
            hidden = carry[0][0]

        def run(
            carry: Carry, start: int = start, end: int = end, read: Callable = read
        ) -> tuple[Carry, Array]:
            new = advance(carry, start, end)
            return new, read(new[0][-1])

        begin, start = start, end

        if tolerance is None or not outputs:
            carry, output = run(carry)
        else:
            last = outputs[-1]
            skip = lambda carry, last=last: (carry, last)
            new, output = jax.lax.cond(jnp.any(active), run, skip, carry)
            carry, output = _where(active, (new, output), (carry, last))
            if end > begin:  # else nothing was integrated that could change it
                change = _rms(output - last)
                state, stats = carry
                stats = dataclasses.replace(stats, error=jnp.where(active, change, stats.error))
                carry = state, stats
                active = active & (change >= tolerance * _rms(output))
        outputs.append(output)
    stats = dataclasses.replace(carry[1], hidden=hidden, by_tolerance=tolerance is not None)
    return jnp.stack(outputs), stats


def _run_plain(
    carry: Carry,
    groups: Sequence[ODEBlock],
    condition: GroupConditions,
    keys: Key[Array, " batch"] | None,
) -> Carry:
    """Run every block once, in turn; the hidden state is what is read."""
    (h, *_), total = carry
    count = 0
    for k, group in enumerate(groups):
        for block in group.blocks:
            run = lambda h, c, key, block=block: block(h, c, key=key)
            h = jax.vmap(run)(h, _of_group(condition, k), _fold(keys, count))
            count += 1
    blocks = total.blocks + count
    return (h,), dataclasses.replace(total, depth=blocks, blocks=blocks)


def _integrate_leaving(
    carry: Carry,
    groups: Sequence[ODEBlock],
    condition: GroupConditions,
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
        running = group(carry, _of_group(condition, k), plan, _fold(keys, k)), condition, keys
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


def _of_group(condition: GroupConditions, k: int) -> Float[Array, "batch features"]:
    """Return what the blocks of group `k` are given besides."""
    return condition[k] if isinstance(condition, tuple) else condition


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


def _rms(x: Float[Array, "batch *rest"]) -> Float[Array, " batch"]:
    return jnp.sqrt(jnp.mean(x**2, axis=tuple(range(1, x.ndim))))
