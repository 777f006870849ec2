"""Flow matching along the paths of a choice of couplings."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from odelt_eqx.draws import normal
from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import Networks, Objective, Targets, TaughtBy, TrainingTime
from odelt_eqx.objective.coupling import coupled
from odelt_eqx.objective.path import (
    PathName,
    TimeName,
    check_name,
    interpolate,
    times_from,
)

CouplingName = Literal["independent", "optimal"]


class FlowDraws(eqx.Module):
    """Draws of `FlowMatching`.

    Args:
        drop: whether an example loses its label.
        time: uniform in [0, 1).
        noise: standard normal.
        spread: standard normal, where the path has a width.
    """

    drop: Bool[Array, " batch"]
    time: Float[Array, " batch"]
    noise: Float[Array, "batch height width channels"]
    spread: Float[Array, "batch height width channels"] | None = None


@dataclasses.dataclass(frozen=True)
class FlowMatching(Objective):
    r"""The velocity of a path from noise to data.

    `x_t` is a point of the path at `t`, plus `sigma` times noise of its own, and the target is the
    path's derivative there; for the straight path `x_t = (1 - t) x_0 + t x_1` and
    `v = x_1 - x_0`. At full depth and at the flow field's step index. Source: arXiv 2210.02747
    (`sigma_min`), 2209.03003 (neither sigma), 2302.00482 (`sigma`, couplings), 2209.15571
    (trigonometric).

    Differs from the reference: where a path has a width, that noise is not the path's own once
    more, drawn with the same key; its "discrete" times are rounded to the nearest multiple, 1
    included, and "grid" rounds down.

    Args:
        class_dropout: share of the examples that lose their label; 1 trains without labels.
        times: "uniform" draws t in [0, 1), "grid" rounds it down to a multiple of
            `1 / denoise_timesteps`, "logit-normal" prefers the middle.
        path: "straight", or "trigonometric", which preserves variance.
        coupling: "independent", or "optimal": noise and images of a batch are paired by optimal
            transport, among examples of the same label.
        sigma: width of the path, in the units of the noise.
        sigma_min: share of the noise that is left at the end of a straight path.

    Raises:
        InputError: a name is not one of those listed or the numbers do not fit together.
    """

    class_dropout: float = 0.1
    times: TimeName = "uniform"
    path: PathName = "straight"
    coupling: CouplingName = "independent"
    sigma: float = 0.0
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        """Check the names and the ranges."""
        check_name("times", self.times, TimeName)
        check_name("path", self.path, PathName)
        check_name("coupling", self.coupling, CouplingName)
        for name in ("class_dropout", "sigma_min"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")
        if self.sigma < 0:
            raise InputError(f"sigma must not be negative; got {self.sigma}")
        if self.sigma_min and self.path != "straight":
            raise InputError(f"sigma_min belongs to the straight path, not to {self.path}")

    @property
    def trains_steps(self) -> bool:
        """False: the flow field is all that is trained."""
        return False

    @property
    def taught_by(self) -> TaughtBy:
        """Data alone."""
        return "data"

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> FlowDraws:
        """Draw label dropout, times and noise, each from a key of its own."""
        spread = None
        shape = (batch_size, *config.image_shape)
        if self.sigma:
            key, spread_key = jax.random.split(key)
            spread = normal(spread_key, shape)
        drop, time, noise = jax.random.split(key, 3)
        return FlowDraws(
            drop=jax.random.bernoulli(drop, self.class_dropout, (batch_size,)),
            time=jax.random.uniform(time, (batch_size,)),
            noise=normal(noise, shape),
            spread=spread,
        )

    def targets(
        self,
        draws: FlowDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return the point of each path at its time, and the path's derivative."""
        config, noise = networks.config, draws.noise
        if self.coupling == "optimal":
            noise = coupled(noise, images, labels)
        t = times_from(draws.time, self.times, config.denoise_timesteps)
        path = lambda t: interpolate(t, noise, images, self.path, self.sigma_min)
        x_t, velocity = jax.jvp(path, (t,), (jnp.ones_like(t),))
        if draws.spread is not None:
            x_t = x_t + self.sigma * draws.spread
        return Targets(
            x_t=x_t,
            t=t,
            step_index=jnp.full_like(labels, config.flow_index),
            labels=jnp.where(draws.drop, config.null_label, labels),
            velocity=velocity,
            depth=config.depth,
        )
