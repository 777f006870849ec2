"""Progressive distillation: a sampler of half the steps, again and again."""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from odelt_eqx.condition import Condition, check_guidance, drop_condition
from odelt_eqx.network import Network
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    X,
    asked,
)
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import FLOOR, interpolate, on_grid
from odelt_eqx.objective.shortcut import two_half_steps

CLIP = 4.0
"""Largest absolute value of a state that a teacher sees after a step of its own."""


class StageDraws(eqx.Module):
    """Draws of the objectives whose step size depends on how far training is.

    Args:
        step_index: the step of this stage is `2 ** -step_index`.
        flow: dropout of conditions, times in [0, 1) and noise.
    """

    step_index: Int[Array, ""]
    flow: FlowDraws


@dataclasses.dataclass(frozen=True)
class Progressive(Objective):
    """One step should go where two half steps of a frozen teacher go.

    Training has `log2(denoise_timesteps)` equal stages. In each the step is twice as large as in
    the previous one, up to one step across [0, 1], and the teacher is a copy of the average from
    the end of that stage; the first teacher is a trained flow. Times lie on the grid of the steps.
    Source: arXiv 2202.00512, with velocities for its data predictions; guidance, distilled in the
    first stage, arXiv 2210.03142.

    Differs from the reference: the teacher is replaced exactly when a stage starts (there at
    multiples of `steps // stages`, which drift away from the stages); the last step of training is
    of the last stage (there of a step of 2); conditions may be dropped, so that guidance can still
    be asked for.

    Args:
        guidance: weight of the guidance that the first stage distils; 1 for none.
        class_dropout: share of the examples that lose their condition; 1 trains without any, 0 is
            the reference.
    """

    trains_steps: ClassVar[bool] = False
    taught_by: ClassVar[TaughtBy] = "stages"
    has_stages: ClassVar[bool] = True
    guidance: float = 1.0
    class_dropout: float = 0.1

    @property
    def no_score(self) -> str | None:
        """What keeps the score from following from the velocity."""
        return "learns mean velocities of steps, not a flow field"

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> StageDraws:
        """Draw dropout, times and noise; the step index follows from the stage."""
        self.check_network(network)
        flow = FlowMatching(self.class_dropout).draw(key, batch_size, network, when)
        stages = network.flow_index
        return StageDraws(stages - 1 - when.stage(stages), flow)

    def targets(
        self, draws: StageDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the mean velocity of the teacher's two half steps."""
        network, weight = networks.student.network, self.guidance
        check_guidance(networks.teacher.network.condition_type, weight)  # before it is traced
        condition = asked(weight, condition, network)
        condition = drop_condition(network.condition_type, condition, draws.flow.drop)
        index = jnp.full(len(data), draws.step_index, jnp.int32)
        steps = 2.0 ** index.astype(jnp.float32)
        t = on_grid(draws.flow.time, steps)
        x_t = interpolate(t, draws.flow.noise, data, sigma_min=FLOOR)
        if weight not in (0, 1):
            first_stage = draws.step_index == network.flow_index - 1
            weight = jnp.where(first_stage, weight, 1.0)

        def velocity(t: Array, x: Array) -> Array:
            return networks.teacher(t, x, index + 1, condition, guidance=weight)

        target = two_half_steps(velocity, t, 0.5 / steps, x_t, CLIP)
        return Targets(x_t, t, index, condition, target)
