"""Progressive distillation: a sampler of half the steps, over and over."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import Networks, Objective, Targets, TaughtBy, TrainingTime
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import FLOOR, interpolate, on_grid
from odelt_eqx.objective.shortcut import two_half_steps
from odelt_eqx.ode.time import guided_velocity

CLIP = 4.0
"""The largest absolute value of a state that a teacher is asked about after a step of its own."""


class StageDraws(eqx.Module):
    """Draws of the objectives whose step size depends on how far training is.

    Args:
        step_index: the step of this stage is `2 ** -step_index`.
        flow: label dropout, times in [0, 1) and noise.
    """

    step_index: Int[Array, ""]
    flow: FlowDraws


@dataclasses.dataclass(frozen=True)
class Progressive(Objective):
    """One step should go where two half steps of a frozen teacher go.

    Training has `log2(denoise_timesteps)` equal stages. In each the step is twice as large as in
    the one before, up to one step across [0, 1], and the teacher is a copy of the average from the
    end of that stage; the first teacher is a trained flow. Times lie on the grid of the steps.
    Source: arXiv 2202.00512, with velocities for its data predictions; guidance, distilled in the
    first stage, arXiv 2210.03142.

    Differs from the reference: the teacher is replaced exactly when a stage begins (there at
    multiples of `steps // stages`, which drift away from the stages); the last step of training is
    of the last stage (there of a step of 2); labels may be dropped, so that guidance can still be
    asked for.

    Args:
        guidance: weight of the guidance that the first stage distils; 1 for none.
        class_dropout: share of the examples that lose their label; 1 trains without labels, 0 is
            the reference.
    """

    guidance: float = 1.0
    class_dropout: float = 0.1

    @property
    def trains_steps(self) -> bool:
        """False: at any time there is one step size."""
        return False

    @property
    def taught_by(self) -> TaughtBy:
        """A frozen copy, replaced at every stage."""
        return "stages"

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> StageDraws:
        """Draw labels, times and noise; the step index follows from the stage."""
        flow = FlowMatching(self.class_dropout).draw(key, batch_size, config, when)
        return StageDraws(config.flow_index - 1 - when.stage(config.flow_index), flow)

    def targets(
        self,
        draws: StageDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return the mean velocity of the teacher's two half steps."""
        config = networks.config
        labels = jnp.where(draws.flow.drop, config.null_label, labels)
        index = jnp.full_like(labels, draws.step_index)
        steps = 2.0**index
        t = on_grid(draws.flow.time, steps)
        x_t = interpolate(t, draws.flow.noise, images, sigma_min=FLOOR)
        weight = 1.0
        if self.guidance != 1:
            first_stage = draws.step_index == config.flow_index - 1
            weight = jnp.where(first_stage, self.guidance, 1.0)

        def velocity(t: Array, x: Array) -> Array:
            return guided_velocity(
                networks.teacher, t, x, index + 1, labels, config.null_label, weight
            )

        return Targets(
            x_t=x_t,
            t=t,
            step_index=index,
            labels=labels,
            velocity=two_half_steps(velocity, t, 0.5 / steps, x_t, CLIP),
            depth=config.depth,
        )
