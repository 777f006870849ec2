"""The points between which a fixed number of steps is taken."""

from typing import Any, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GridName = Literal["uniform", "cosine", "logit-normal"]
GRIDS: tuple[GridName, ...] = get_args(GridName)


def grid_point(name: GridName, share: Float[Array, ""]) -> Float[Array, ""]:
    r"""Return the point of a named grid of [0, 1] after a share of its steps.

    "uniform": $s$; "cosine": $\sin^2(\pi s / 2)$, dense at both ends; "logit-normal":
    $\sigma(\Phi^{-1}(s))$, the quantiles of the logit-normal distribution (arXiv 2403.03206).

    Args:
        name: the grid.
        share: steps taken over steps in all, from 0 to 1.
    """
    if name == "cosine":
        return jnp.sin(jnp.pi / 2 * share) ** 2
    if name == "logit-normal":
        return jax.nn.sigmoid(jax.scipy.special.ndtri(share))
    return share


class GridSteps(diffrax.AbstractStepSizeController[Int[Array, ""], None]):
    """A diffrax controller that steps along a grid of [0, 1], forwards or backwards.

    The number of steps may be traced: one compiled program serves any. Unlike a `dt0` that is
    passed to diffrax, it brings no runtime check into the program.

    Args:
        steps: number of steps.
        grid: name of the grid.
        times: the points themselves, instead of a named grid; the first 0, the last 1.
        direction: 1 forwards, -1 backwards; diffrax sets it.
    """

    steps: int | Int[Array, ""]
    grid: GridName = eqx.field(static=True, default="uniform")
    times: tuple[Any, ...] = ()
    direction: Any = 1

    def wrap(self, direction: Any) -> "GridSteps":
        """Return the same grid for a solve in `direction`."""
        return GridSteps(self.steps, self.grid, self.times, direction)

    def point(self, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return where step `index` starts, in diffrax's time, which always runs forwards."""
        index = jnp.where(self.direction > 0, index, self.steps - index)
        if self.times:
            points = jnp.stack([jnp.asarray(t, jnp.float32) for t in self.times])
            return self.direction * points[index]
        return self.direction * grid_point(self.grid, index.astype(jnp.float32) / self.steps)

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: None, args: Any, func: Any, order: Any
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Return the end of the first step and the number of the step after it."""
        return self.point(jnp.array(1)), jnp.array(2)

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> tuple[Any, ...]:
        """Accept every step and go on to the next point."""
        next_point = self.point(jnp.minimum(state, self.steps))
        return True, t1, next_point, False, state + 1, diffrax.RESULTS.successful
