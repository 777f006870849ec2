"""The velocity field that the time ODE integrates, put together from a network and its options."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odelt_eqx.network import Condition, Network, guided_velocity
from odelt_eqx.ode.length import LengthStats
from odelt_eqx.ode.plan import FixedSteps, Plan
from odelt_eqx.ode.time import TimeSolution
from odelt_eqx.sampling.config import SampleConfig

Args = tuple[Condition | None, Array | None]
"""The condition and, where it differs between examples, the depth."""


class SolveStats(NamedTuple):
    """What a solve over time took, for each example.

    Where the batch shares its steps, all examples have the same counts. Where each has its own,
    the batch is evaluated until the last is done: it waits for the largest number.

    Attributes:
        accepted: time steps taken.
        rejected: time steps tried and discarded.
        evaluations: network evaluations; a guided one counts twice.
        blocks: block evaluations, over all network evaluations.
        depth: depth in blocks that a network evaluation reached, on average.
        time_failed: the time solve ran out of steps: the states are the last ones.
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
        """The counts by the names that are printed."""
        return {
            "time steps": self.accepted,
            "rejected steps": self.rejected,
            "network evaluations": self.evaluations,
            "block evaluations": self.blocks,
            "depth reached": self.depth,
        }


def solve_stats(solution: TimeSolution, total: LengthStats) -> SolveStats:
    """Return the statistics of a counted solve."""
    return SolveStats(
        accepted=solution.accepted,
        rejected=solution.rejected,
        evaluations=total.solves.astype(jnp.int32),
        blocks=total.blocks.astype(jnp.int32),
        depth=total.depth / jnp.maximum(total.solves, 1),
        time_failed=solution.failed,
        length_failed=total.failures > 0,
    )


def step_index(plan: Plan, flow_index: int) -> int | Int[Array, ""]:
    """Return the step index that a network is asked for: `floor(log2 steps)`, at most the flow's.

    Adaptive solves follow the flow field itself. Differs from the reference, which asks for index
    0 there, the field of one step across [0, 1].
    """
    if not isinstance(plan, FixedSteps):
        return flow_index
    if isinstance(plan.count, int):
        return min(plan.count.bit_length() - 1, flow_index)
    floor_log2 = 31 - jax.lax.clz(plan.count.astype(jnp.int32))
    return jnp.minimum(floor_log2, flow_index)


def field_args(condition: Condition | None, config: SampleConfig) -> Args:
    """Return what differs between the examples of a batch, for `velocity_field`."""
    depth: Any = config.depth
    return condition, depth if eqx.is_array(depth) else None


def velocity_field(
    network: Network, config: SampleConfig
) -> Callable[..., tuple[Float[Array, "batch *shape"], LengthStats]]:
    """Return the field `(t, x, args) -> (dx/dt, stats)`, guided, of a config from `resolve`."""
    index = jnp.asarray(step_index(config.time, network.flow_index), jnp.int32)

    def field(t: Float[Array, ""], x: Array, args: Args) -> tuple[Array, LengthStats]:
        condition, depth = args
        return guided_velocity(
            network,
            t,
            x,
            index,
            condition,
            config.guidance,
            config.depth if depth is None else depth,
            length=config.length,
            exit_tolerance=config.exit_tolerance,
        )

    return field
