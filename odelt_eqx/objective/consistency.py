"""Consistency models: from anywhere on a path straight to its end."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition, drop_condition
from odelt_eqx.network import Network
from odelt_eqx.objective.base import Networks, Objective, Targets, TaughtBy, TrainingTime, X
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import FLOOR, interpolate, on_grid, per_example
from odelt_eqx.objective.progressive import CLIP, StageDraws


@dataclasses.dataclass(frozen=True)
class Consistency(Objective):
    """Consistency training: two points of one path should lead to the same end.

    With `s = t + 2 ** -k` and the same noise at both times, the target at `x_t` is the velocity
    that reaches `x_s + (1 - s) v(s, x_s)` at time 1, `v` the average's. `k` rises by one at each of
    `log2(denoise_timesteps)` equal stages of the training, from 0; times lie on the grid of those
    steps. Source: arXiv 2303.01469, algorithm 3, with velocities for its data predictions.

    Differs from the reference, which cannot run: it indexes a scalar step index. Conditions may be
    dropped, so that guidance can be asked for.

    Args:
        class_dropout: share of the examples that lose their condition; 1 trains without any, 0 is
            the reference.
    """

    trains_steps: ClassVar[bool] = False
    taught_by: ClassVar[TaughtBy] = "data"
    has_stages: ClassVar[bool] = True
    class_dropout: float = 0.1

    @property
    def no_score(self) -> str | None:
        """What keeps the score from following from the velocity."""
        return "learns velocities to the end of a path, not a flow field"

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> StageDraws:
        """Draw dropout, times and noise; the step index follows from the stage."""
        self.check_network(network)
        flow = FlowMatching(self.class_dropout).draw(key, batch_size, network, when)
        return StageDraws(when.stage(network.flow_index), flow)

    def targets(
        self, draws: StageDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the velocities that lead where the next point of the path leads."""
        noise = draws.flow.noise
        kind = networks.student.network.condition_type
        condition = drop_condition(kind, condition, draws.flow.drop)
        index = jnp.full(len(data), draws.step_index, jnp.int32)
        steps = 2.0 ** index.astype(jnp.float32)
        t = on_grid(draws.flow.time, steps)
        s = t + 1 / steps
        x_t, x_s = (interpolate(time, noise, data, sigma_min=FLOOR) for time in (t, s))
        later = networks.average(s, x_s, index, condition)
        velocity = velocity_to_end(t, x_t, s, x_s, later)
        return Targets(x_t, t, index, condition, velocity)


@dataclasses.dataclass(frozen=True)
class ConsistencyDistillation(Objective):
    """Consistency distillation: the next point is one step along a trained flow.

    With `s = t + 1 / denoise_timesteps` and `x_s` one Euler step of the frozen teacher from `x_t`,
    the target at `x_t` is the velocity that reaches `x_s + (1 - s) v(s, x_s)` at time 1, `v` the
    average's. Source: arXiv 2303.01469, algorithm 2, with velocities for its data predictions.

    Differs from the reference: conditions may be dropped, so that guidance can still be asked for.

    Args:
        class_dropout: share of the examples that lose their condition; 1 trains without any, 0 is
            the reference.
    """

    trains_steps: ClassVar[bool] = False
    taught_by: ClassVar[TaughtBy] = "frozen"
    class_dropout: float = 0.1

    @property
    def needs_steps(self) -> bool:
        """Whether times lie on the grid of the steps: they do."""
        return True

    @property
    def no_score(self) -> str | None:
        """What keeps the score from following from the velocity."""
        return "learns velocities to the end of a path, not a flow field"

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> FlowDraws:
        """Draw dropout, times and noise."""
        self.check_network(network)
        return FlowMatching(self.class_dropout).draw(key, batch_size, network, when)

    def targets(
        self, draws: FlowDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the velocities that lead where the next point of the flow leads."""
        network = networks.student.network
        points = 2**network.flow_index
        condition = drop_condition(network.condition_type, condition, draws.drop)
        index = jnp.full(len(data), network.flow_index, jnp.int32)
        t = on_grid(draws.time, points)
        s = t + 1 / points
        x_t = interpolate(t, draws.noise, data, sigma_min=FLOOR)
        x_s = x_t + networks.teacher(t, x_t, index, condition) / points
        x_s = jnp.clip(x_s, -CLIP, CLIP)
        later = networks.average(s, x_s, index, condition)
        velocity = velocity_to_end(t, x_t, s, x_s, later)
        return Targets(x_t, t, index, condition, velocity)


def velocity_to_end(
    t: Float[Array, " batch"], x_t: X, s: Float[Array, " batch"], x_s: X, velocity: X
) -> X:
    """Return `(x_s + (1 - s) velocity - x_t) / (1 - t)`."""
    return (x_s + per_example(1 - s, x_s) * velocity - x_t) / per_example(1 - t, x_t)
