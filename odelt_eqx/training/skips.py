"""Bad steps: skipped and counted, and reported with their examples if there are too many."""

from collections import deque
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from odelt_eqx.errors import DivergedError


class Skips(eqx.Module):
    """How many steps were skipped because their loss or gradient was not finite.

    `optax.apply_if_finite` checks the gradient alone, lets a bad update through after a number of
    them and cannot hold back the EMA, so the training step selects the whole state itself.

    Args:
        total: skipped steps of the whole run.
        in_a_row: skipped steps since the last one taken. Once at the limit it never falls: every
            later step is skipped as well, until the training loop, which checks only at logging
            steps, stops.
    """

    total: Int[Array, ""]
    in_a_row: Int[Array, ""]

    @classmethod
    def fresh(cls) -> "Skips":
        """Return the counters before the first step."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def judge(self, finite: Bool[Array, ""], limit: int) -> tuple[Bool[Array, ""], "Skips"]:
        """Return whether to take a step, and the counters after it.

        Args:
            finite: whether the loss and the gradient are finite.
            limit: number of skipped steps in a row that stops a run.
        """
        taken = finite & (self.in_a_row < limit)
        return taken, Skips(
            jnp.where(taken, self.total, self.total + 1), jnp.where(taken, 0, self.in_a_row + 1)
        )


class RecentBatches:
    """The indices of the latest batches, to name the examples on which a run diverged."""

    def __init__(self, count: int):
        self._batches: deque[tuple[int, Int[np.ndarray, " batch"]]] = deque(maxlen=count)

    def add(self, step: int, index: Int[np.ndarray, " batch"]) -> None:
        """Add the batch of `step` by the indices of its examples in the data."""
        self._batches.append((step, index))

    def check(self, skips: Skips, limit: int, step: int, last_good: Callable[[], str]) -> None:
        """Raise a DivergedError if `limit` steps in a row were skipped.

        Args:
            skips: the counters after `step`.
            limit: number of skipped steps in a row that stops a run.
            step: steps done.
            last_good: says which checkpoint is the last complete one.
        """
        in_a_row = int(skips.in_a_row)
        if in_a_row < limit:
            return
        last = step - in_a_row + limit
        examples = ""
        if last in (batches := dict(self._batches)):  # not where a resumed run has a lower limit
            examples = f", on the examples {', '.join(map(str, batches[last].tolist()))}"
        raise DivergedError(
            f"the loss or its gradient was not finite in {limit} steps in a row; step {last} was "
            f"the last of them{examples}; {last_good()}"
        )
