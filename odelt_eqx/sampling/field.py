"""The velocity field that the time ODE integrates, put together from a network and its options."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from odelt_eqx.condition import Condition, Guidance, is_told_guidance
from odelt_eqx.guidance import gives_guide, guided_velocity
from odelt_eqx.inputs import Depth
from odelt_eqx.network import Network, index_of_step
from odelt_eqx.ode.length import LengthStats
from odelt_eqx.ode.plan import FixedSteps, Plan
from odelt_eqx.ode.time import Noise, TimeSolution
from odelt_eqx.sampling.config import SampleConfig

Args = tuple[Condition | None, Array | None, Array | None, Array | None]
"""The condition and, where they differ between examples, depth, guidance and that by depth."""
StepIndex = Callable[[Float[Array, ""]], Float[Array, ""]]
"""The step index that a network is asked for at a time."""


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
        time_error: what the time solver estimates its error to be: the root mean square over the
            values of a sample for each step, summed over the steps; 0 if it estimates none.
        depth_error: what a tolerance of depth estimates its error to be, in the same units: the
            root mean square of the last change of the velocity, averaged over the evaluations,
            since a solve lasts one unit of time; 0 without a tolerance.
        time_failed: the time solve ran out of steps: the states are the last ones.
        length_failed: a length solve did.

    Example:
        >>> three = odelt.FixedSteps(steps=3)
        >>> images, stats = odelt.sample_with_stats(model, noise, labels, time=three)
        >>> int(stats.evaluations[0]), int(stats.blocks[0])
        (3, 12)
    """

    accepted: Int[Array | np.ndarray, " batch"]
    rejected: Int[Array | np.ndarray, " batch"]
    evaluations: Int[Array | np.ndarray, " batch"]
    blocks: Int[Array | np.ndarray, " batch"]
    depth: Float[Array | np.ndarray, " batch"]
    time_error: Float[Array | np.ndarray, " batch"]
    depth_error: Float[Array | np.ndarray, " batch"]
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
            "estimated error of time": self.time_error,
            "estimated error of depth": self.depth_error,
        }


def solve_stats(
    solution: TimeSolution, total: LengthStats, time_error: Float[Array, " batch"]
) -> SolveStats:
    """Return the statistics of a counted solve."""
    return SolveStats(
        accepted=solution.accepted,
        rejected=solution.rejected,
        evaluations=total.solves.astype(jnp.int32),
        blocks=total.blocks.astype(jnp.int32),
        depth=total.depth / jnp.maximum(total.solves, 1),
        time_error=time_error,
        depth_error=total.error / jnp.maximum(total.solves, 1),
        time_failed=solution.failed,
        length_failed=total.failures > 0,
    )


def step_index(config: SampleConfig, flow_index: int, *, backwards: bool = False) -> StepIndex:
    """Return which velocity is asked for along a solve.

    One step of Euler's, forwards, asks for the mean velocity over its own length. Everything else
    follows the flow: the stages of other solvers, adaptive plans, an SDE, and the way back.

    The index of a length between two powers of two is a fraction. That measures best for networks
    trained on powers of two as well: on digits at depth 6, 3, 5, 6 and 7 steps end 0.083, 0.059,
    0.053 and 0.047 (root mean square) from where the flow leads, with the index rounded up 0.089,
    0.067, 0.055 and 0.048, rounded down 0.109, 0.065, 0.068 and 0.072.
    """
    time = config.time
    if config.as_published:
        return published_step_index(time, flow_index)
    if backwards or not isinstance(time, FixedSteps) or time.solver != "euler" or diffuses(config):
        return flow_field(flow_index)
    return lambda t: index_of_step(time.step_length(t), flow_index)


def diffuses(config: SampleConfig) -> bool:
    """Whether a config from `resolve` integrates an SDE."""
    return not isinstance(config.diffusion, float)


def noise_on_the_way(config: SampleConfig, keys: Key[Array, " batch"] | None) -> Noise | None:
    """Return the noise of the SDE, if there is one."""
    if not diffuses(config):
        return None
    assert keys is not None  # for the type checker: see `resolve`
    return Noise(lambda t: jnp.sqrt(config.diffusion) * jnp.sqrt(1 - t), keys)


def flow_field(flow_index: int) -> StepIndex:
    """Return the rule that asks for the flow field at every time."""
    return lambda t: jnp.asarray(flow_index, jnp.float32)


def published_step_index(plan: Plan, flow_index: int) -> StepIndex:
    """Return the reference's rule: `floor(log2 steps)` at every time, 0 in adaptive solves."""
    if not isinstance(plan, FixedSteps):
        return lambda t: jnp.zeros(())
    floor_log2 = 31 - jax.lax.clz(jnp.asarray(plan.count, jnp.int32))
    return lambda t: jnp.minimum(floor_log2, flow_index).astype(jnp.float32)


def field_args(condition: Condition | None, config: SampleConfig) -> Args:
    """Return what differs between the examples of a batch, for `velocity_field`."""
    differs = lambda value: value if eqx.is_array(value) and value.ndim else None
    depth = None if isinstance(config.depth, tuple) else differs(config.depth)
    return condition, depth, differs(config.guidance), differs(config.depth_guidance)


def jumps(config: SampleConfig) -> Float[Array, " jumps"] | None:
    """Return the times where guidance starts and ends, for `integrate_time`."""
    intervals = (config.guidance_interval, config.depth_guidance_interval)
    times = [jnp.asarray(time) for interval in intervals if interval for time in interval]
    return jnp.sort(jnp.stack(times)) if times else None


def velocity_field(
    network: Network, config: SampleConfig, index: StepIndex, *, backwards: bool = False
) -> Callable[..., tuple[Float[Array, "batch *shape"], LengthStats]]:
    """Return the field `(t, x, args) -> (dx/dt, stats)`, guided, of a config from `resolve`.

    With `diffusion` it is the drift of the SDE, whose score follows from the velocity of a straight
    path: the noise in `x` is `x - t v`, and the score that divided by `t - 1`.
    """

    def drift(t: Float[Array, ""], x: Array, args: Args) -> tuple[Array, LengthStats]:
        velocity, stats = field(t, x, args)
        return velocity - config.diffusion / 2 * (x - t * velocity), stats

    def field(t: Float[Array, ""], x: Array, args: Args) -> tuple[Array, LengthStats]:
        condition, own_depth, own_guidance, own_depth_guidance = args
        depth = config.depth if own_depth is None else own_depth
        guidance = config.guidance if own_guidance is None else own_guidance
        by_depth = config.depth_guidance if own_depth_guidance is None else own_depth_guidance
        velocity = partial(
            guided_velocity,
            network,
            t,
            x,
            index(t),
            condition,
            guide_depth=config.guide_depth,
            length=config.length,
            tolerance=config.depth_tolerance,
        )

        def at_depth(depth: Depth, guidance: float | Array | Guidance) -> tuple[Array, LengthStats]:
            guided = partial(velocity, guidance, depth)
            guide = config.guide_depth
            if isinstance(depth, int) and guide is not None and depth <= guide:
                return guided()
            if config.depth_guidance_interval is None:
                return guided(depth_guidance=by_depth)
            inside = Guidance(1.0, *config.depth_guidance_interval).acts(t)
            if gives_guide(depth, network):
                return guided(depth_guidance=jnp.where(inside, by_depth, 0))
            return jax.lax.cond(inside, partial(guided, depth_guidance=by_depth), guided)

        def with_guidance(guidance: float | Array | Guidance) -> tuple[Array, LengthStats]:
            if not isinstance(depth, tuple):
                return at_depth(depth, guidance)
            assert isinstance(config.time, FixedSteps)  # for the type checker: see `resolve`
            known = sorted(set(depth))
            branch = jnp.array([known.index(d) for d in depth])[config.time.index(t, backwards)]
            return jax.lax.switch(branch, [partial(at_depth, d, guidance) for d in known])

        if config.guidance_interval is None:
            return with_guidance(guidance)
        told = Guidance(guidance, *config.guidance_interval)
        null_alone = isinstance(guidance, float) and guidance == 0
        if is_told_guidance(network.condition_type) and not null_alone:
            return with_guidance(told)
        guided, unguided = partial(with_guidance, guidance), partial(with_guidance, 1.0)
        return jax.lax.cond(told.acts(t), guided, unguided)

    return drift if diffuses(config) else field
