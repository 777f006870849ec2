"""Shortcut models: one network for every step size."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.condition import Condition
from odelt_eqx.network import Network
from odelt_eqx.noise import normal
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    X,
    asked,
    join,
    share,
    split,
)
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import TimeName, interpolate, on_grid, per_example


class ShortcutDraws(eqx.Module):
    """Draws of `Shortcut` and `LiveReflow`, whose first examples are steps.

    Args:
        step_index: uniform over the indices that are not the flow field's.
        time: uniform in [0, 1).
        noise: standard normal.
        flow: draws of the rest of the batch.
    """

    step_index: Int[Array, " steps"]
    time: Float[Array, " steps"]
    noise: Float[Array, "steps *shape"]
    flow: FlowDraws


@dataclasses.dataclass(frozen=True)
class Shortcut(Objective):
    """One step should go where the teacher's two half steps go; the rest is flow matching.

    For the first `1 / every` of the batch, with step `2 h = 2 ** -step_index` and `t` on the grid
    of such steps: `v_1 = v(t, x_t)`, `v_2 = v(t + h, x_t + h v_1)`, both for steps of `h`, and
    the target is `(v_1 + v_2) / 2`. Source: arXiv 2410.12557.

    Differs from the reference (`odelt_eqx.interop.PublishedShortcut`): noise for the two parts
    comes from different keys; each example is used once; a guided shortcut follows the guided
    velocity at both half steps and is the only target of its input.

    Args:
        every: one example in `every` is a time shortcut.
        guidance: weight of the guidance that shortcuts learn; 1 for none; 0 trains without
            conditions.
        class_dropout: share of the flow-matching examples that lose their condition.
        times: times of the flow-matching examples, see `FlowMatching`.
        time_shift: see `FlowMatching`.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "average"
    every: int = 8
    guidance: float = 1.0
    class_dropout: float = 0.1
    times: TimeName = "grid"
    time_shift: float = 1.0

    @property
    def flow(self) -> FlowMatching:
        """The objective of the rest of the batch."""
        return FlowMatching(self.class_dropout, self.times, self.time_shift)

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> ShortcutDraws:
        """Draw for the shortcuts and for the rest, each draw from a key of its own."""
        self.check_network(network)
        return draw_steps(key, batch_size, self.every, self.flow, network, when)

    def targets(
        self, draws: ShortcutDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return shortcut targets for the first examples and flow targets for the others."""
        n, index = len(draws.step_index), draws.step_index
        condition = asked(self.guidance, condition, networks.student.network)
        labels, other_labels = split(condition, n)
        t, half, x_t = start_of_steps(draws, data[:n])

        def velocity(t: Array, x: Array) -> Array:
            return networks.teacher(t, x, index + 1, labels, guidance=self.guidance)

        shortcuts = Targets(x_t, t, index, labels, two_half_steps(velocity, t, half, x_t))
        flow = self.flow.targets(draws.flow, data[n:], other_labels, networks)
        return join(shortcuts, flow)


def draw_steps(
    key: Key[Array, ""],
    batch_size: int,
    every: int,
    flow: FlowMatching,
    network: Network,
    when: TrainingTime,
) -> ShortcutDraws:
    """Draw for the steps, one in `every`, and for the rest, each draw from a key of its own."""
    count = share(batch_size, every)
    step, time, noise, rest = jax.random.split(key, 4)
    return ShortcutDraws(
        step_index=jax.random.randint(step, (count,), 0, network.flow_index),
        time=jax.random.uniform(time, (count,)),
        noise=normal(noise, (count, *network.shape)),
        flow=flow.draw(rest, batch_size - count, network, when),
    )


def start_of_steps(draws: ShortcutDraws, data: X) -> tuple[Array, Array, Array]:
    """Return times on the grid of each example's step, half of that step, and the states."""
    steps = 2.0 ** draws.step_index.astype(jnp.float32)
    t = on_grid(draws.time, steps)
    return t, 0.5 / steps, interpolate(t, draws.noise, data)


def two_half_steps(
    velocity: Callable[[Array, Array], Array],
    t: Float[Array, " batch"],
    half: Float[Array, " batch"],
    x_t: X,
    clip: float | None = None,
) -> X:
    """Return the mean of the velocities `velocity(t, x)` of two Euler steps of size `half`.

    Between the steps the state is clipped to absolute values of at most `clip`, if there is one.
    """
    before = velocity(t, x_t)
    middle = x_t + per_example(half, x_t) * before
    middle = middle if clip is None else jnp.clip(middle, -clip, clip)
    return (before + velocity(t + half, middle)) / 2
