"""Flow matching along straight paths."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import Objective, Targets, Teacher


class FlowDraws(eqx.Module):
    """Draws of `FlowMatching`.

    Args:
        drop: whether an example loses its label.
        time: uniform in [0, 1).
        noise: standard normal.
    """

    drop: Bool[Array, " batch"]
    time: Float[Array, " batch"]
    noise: Float[Array, "batch height width channels"]


@dataclasses.dataclass(frozen=True)
class FlowMatching(Objective):
    """The velocity of the straight line from noise to data.

    `x_t = (1 - t) x_0 + t x_1` and `v = x_1 - x_0`, at full depth and at the flow field's step
    index. Source: arXiv 2210.02747 and 2209.03003.

    Args:
        class_dropout: share of the examples that lose their label.
        times: "uniform" draws t in [0, 1), "grid" rounds it down to a multiple of
            `1 / denoise_timesteps`.
    """

    class_dropout: float = 0.1
    times: Literal["uniform", "grid"] = "uniform"

    @property
    def trains_steps(self) -> bool:
        """False: the flow field is all that is trained."""
        return False

    def draw(self, key: Key[Array, ""], batch_size: int, config: DiTConfig) -> FlowDraws:
        """Draw label dropout, times and noise, each from a key of its own."""
        drop, time, noise = jax.random.split(key, 3)
        return FlowDraws(
            drop=jax.random.bernoulli(drop, self.class_dropout, (batch_size,)),
            time=jax.random.uniform(time, (batch_size,)),
            noise=jax.random.normal(noise, (batch_size, *config.image_shape)),
        )

    def targets(
        self,
        draws: FlowDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        teacher: Teacher,
    ) -> Targets:
        """Return the point of each line at its time, and the line's direction."""
        config = teacher.config
        t = draws.time
        if self.times == "grid":
            t = jnp.floor(config.denoise_timesteps * t) / config.denoise_timesteps
        return Targets(
            x_t=interpolate(t, draws.noise, images),
            t=t,
            step_index=jnp.full_like(labels, config.flow_index),
            labels=jnp.where(draws.drop, config.null_label, labels),
            velocity=images - draws.noise,
            depth=config.depth,
        )


def interpolate(
    t: Float[Array, " batch"],
    noise: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Return `(1 - t) noise + t images`."""
    return noise + t[:, None, None, None] * (images - noise)
