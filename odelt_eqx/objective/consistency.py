"""Consistency models: from anywhere on a path straight to its end."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import Networks, Objective, Targets, TaughtBy, TrainingTime
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import FLOOR, interpolate, on_grid, per_image
from odelt_eqx.objective.progressive import CLIP, StageDraws


@dataclasses.dataclass(frozen=True)
class Consistency(Objective):
    """Consistency training: two points of one path should lead to the same end.

    With `s = t + 2 ** -k` and the same noise at both times, the target at `x_t` is the velocity
    that reaches `x_s + (1 - s) v(s, x_s)` at time 1, `v` the average's. `k` rises by one at each of
    `log2(denoise_timesteps)` equal stages of the training, from 0; times lie on the grid of those
    steps. Source: arXiv 2303.01469, algorithm 3, with velocities for its data predictions.

    Differs from the reference, which cannot run: it indexes a scalar step index. Labels may be
    dropped, so that guidance can be asked for.

    Args:
        class_dropout: share of the examples that lose their label; 1 trains without labels, 0 is
            the reference.
    """

    class_dropout: float = 0.1

    @property
    def trains_steps(self) -> bool:
        """False: every velocity leads to the end."""
        return False

    @property
    def taught_by(self) -> TaughtBy:
        """Data alone, and the average's own answers at later times."""
        return "data"

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> StageDraws:
        """Draw labels, times and noise; the step index follows from the stage."""
        flow = FlowMatching(self.class_dropout).draw(key, batch_size, config, when)
        return StageDraws(when.stage(config.flow_index), flow)

    def targets(
        self,
        draws: StageDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return the velocities that lead where the path's next point leads."""
        config, noise = networks.config, draws.flow.noise
        labels = jnp.where(draws.flow.drop, config.null_label, labels)
        index = jnp.full_like(labels, draws.step_index)
        steps = 2.0**index
        t = on_grid(draws.flow.time, steps)
        s = t + 1 / steps
        x_t, x_s = (interpolate(time, noise, images, sigma_min=FLOOR) for time in (t, s))
        later = networks.average(s, x_s, index, labels)
        return Targets(
            x_t=x_t,
            t=t,
            step_index=index,
            labels=labels,
            velocity=to_the_same_end(t, x_t, s, x_s, later),
            depth=config.depth,
        )


@dataclasses.dataclass(frozen=True)
class ConsistencyDistillation(Objective):
    """Consistency distillation: the next point is one step along a trained flow.

    With `s = t + 1 / denoise_timesteps` and `x_s` one Euler step of the frozen teacher from `x_t`,
    the target at `x_t` is the velocity that reaches `x_s + (1 - s) v(s, x_s)` at time 1, `v` the
    average's. Source: arXiv 2303.01469, algorithm 2, with velocities for its data predictions.

    Differs from the reference: labels may be dropped, so that guidance can still be asked for.

    Args:
        class_dropout: share of the examples that lose their label; 1 trains without labels, 0 is
            the reference.
    """

    class_dropout: float = 0.1

    @property
    def trains_steps(self) -> bool:
        """False: every velocity leads to the end."""
        return False

    @property
    def taught_by(self) -> TaughtBy:
        """A frozen flow."""
        return "frozen"

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> FlowDraws:
        """Draw labels, times and noise."""
        return FlowMatching(self.class_dropout).draw(key, batch_size, config, when)

    def targets(
        self,
        draws: FlowDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return the velocities that lead where the flow's next point leads."""
        config, step = networks.config, 1 / networks.config.denoise_timesteps
        labels = jnp.where(draws.drop, config.null_label, labels)
        index = jnp.full_like(labels, config.flow_index)
        t = on_grid(draws.time, config.denoise_timesteps)
        x_t = interpolate(t, draws.noise, images, sigma_min=FLOOR)
        x_s = jnp.clip(x_t + step * networks.teacher(t, x_t, index, labels), -CLIP, CLIP)
        later = networks.average(t + step, x_s, index, labels)
        return Targets(
            x_t=x_t,
            t=t,
            step_index=index,
            labels=labels,
            velocity=to_the_same_end(t, x_t, t + step, x_s, later),
            depth=config.depth,
        )


def to_the_same_end(
    t: Float[Array, " batch"],
    x_t: Float[Array, "batch height width channels"],
    s: Float[Array, " batch"],
    x_s: Float[Array, "batch height width channels"],
    velocity: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Return `(x_s + (1 - s) velocity - x_t) / (1 - t)`."""
    return (x_s + per_image(1 - s) * velocity - x_t) / per_image(1 - t)
