"""Live reflow: pairs of noise and what the network makes of it, while it trains."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition
from odelt_eqx.network import Network
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    X,
    asked,
    join,
    split,
)
from odelt_eqx.objective.flow_matching import FlowMatching
from odelt_eqx.objective.path import FLOOR, TimeName, interpolate, on_grid
from odelt_eqx.objective.shortcut import ShortcutDraws, draw_steps
from odelt_eqx.ode import FixedSteps, integrate_time


@dataclasses.dataclass(frozen=True)
class LiveReflow(Objective):
    """Any large step should follow the line from noise to where the flow field takes it.

    For the first `1 / every` of the batch, `x_1` is the end of an Euler solve of the flow field
    from the noise `x_0`, and the target at `(1 - t) x_0 + t x_1` is `x_1 - x_0`; the rest is flow
    matching. Source: arXiv 2209.03003, live as in 2410.12557. The trained network makes the
    pairs, or the teacher if one is given: then it is plain reflow.

    Differs from the reference (`odelt_eqx.interop.PublishedLiveReflow`): noise for the two parts
    comes from different keys; each example is used once; the pairs train every step index but the
    flow field's.

    Args:
        every: one example in `every` is a pair.
        guidance: weight of the guidance that makes the pairs; 0 trains without conditions.
        steps: Euler steps of the solve.
        class_dropout: share of the flow-matching examples that lose their condition.
        times: times of the flow-matching examples, see `FlowMatching`.
        time_shift: see `FlowMatching`.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "student"
    every: int = 8
    guidance: float = 1.0
    steps: int = 8
    class_dropout: float = 0.1
    times: TimeName = "grid"
    time_shift: float = 1.0

    @property
    def flow(self) -> FlowMatching:
        """The objective of the rest of the batch."""
        return FlowMatching(self.class_dropout, self.times, self.time_shift, sigma_min=FLOOR)

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> ShortcutDraws:
        """Draw for the pairs and for the rest, each draw from a key of its own."""
        self.check_network(network)
        return draw_steps(key, batch_size, self.every, self.flow, network, when)

    def targets(
        self, draws: ShortcutDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return straightened pairs for the first examples and flow targets for the others."""
        n = len(draws.time)
        condition = asked(self.guidance, condition, networks.student.network)
        labels, other_labels = split(condition, n)
        flow = self.flow.targets(draws.flow, data[n:], other_labels, networks)
        return join(self.pairs(draws, labels, networks), flow)

    def pairs(
        self, draws: ShortcutDraws, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the targets of the pairs."""
        network, n = networks.student.network, len(draws.time)
        index = jnp.full(n, network.flow_index, jnp.int32)

        def flow_field(t: Float[Array, ""], x: Array, condition: Condition | None) -> Array:
            return networks.teacher(t, x, index, condition, guidance=self.guidance)

        plan = FixedSteps(steps=self.steps)
        ends = integrate_time(flow_field, draws.noise, plan, condition).states[-1]
        t = on_grid(draws.time, 2**network.flow_index)
        return Targets(
            x_t=interpolate(t, draws.noise, ends, sigma_min=FLOOR),
            t=t,
            step_index=draws.step_index,
            condition=condition,
            velocity=ends - draws.noise,
        )
