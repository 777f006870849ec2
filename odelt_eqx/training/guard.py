"""What keeps a bad batch from spoiling a run: it is skipped, counted, and reported."""

from collections import deque
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from odelt_eqx.errors import DivergedError


class Guard(eqx.Module):
    """How many steps were skipped because their loss or gradient was not finite.

    `optax.apply_if_finite` looks at the gradient alone, lets the bad update through after a number
    of them, and cannot hold back the average of the weights; so the whole state is guarded here.

    Args:
        skipped: in the whole run.
        in_a_row: up to now without a good one between. At the limit it never falls again: every
            later step is skipped too, until the loop, which looks now and then only, stops.
    """

    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]

    @classmethod
    def fresh(cls) -> "Guard":
        """Return the counters before the first step."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def judge(self, finite: Bool[Array, ""], limit: int) -> tuple[Bool[Array, ""], "Guard"]:
        """Return whether a step may be taken, and the counters after it.

        Args:
            finite: whether its loss and gradient are.
            limit: skipped steps in a row that stop a run.
        """
        taken = finite & (self.in_a_row < limit)
        return taken, Guard(self.skipped + ~taken, jnp.where(taken, 0, self.in_a_row + 1))


def where(taken: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Return `new` if the step is taken and `old` if not."""
    return jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, old)


class RecentBatches:
    """Remembers which examples the last batches held, to name them if they are to blame."""

    def __init__(self, count: int):
        """Remember `count` batches."""
        self._batches: deque[tuple[int, Int[np.ndarray, " batch"]]] = deque(maxlen=count)

    def add(self, step: int, index: Int[np.ndarray, " batch"]) -> None:
        """Remember the batch of `step` by its examples' places in the data."""
        self._batches.append((step, index))

    def check(self, guard: Guard, limit: int, step: int, saved: Callable[[], str]) -> None:
        """Raise a DivergedError if `limit` steps in a row were skipped by `step`.

        Args:
            guard: the counters after `step`.
            limit: skipped steps in a row that stop a run.
            step: steps done.
            saved: says where the last good checkpoint is.
        """
        in_a_row = int(guard.in_a_row)
        if in_a_row < limit:
            return
        last = step - in_a_row + limit
        examples = ", ".join(map(str, dict(self._batches)[last].tolist()))
        raise DivergedError(
            f"the loss or its gradient was not finite in {limit} steps in a row; step {last} was "
            f"the last of them, on the examples {examples}; {saved()}"
        )
