"""Flow matching along paths of a choice of couplings."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from odelt_eqx.condition import Condition, Vector, drop_condition, learns_null_only
from odelt_eqx.errors import InputError, check_range
from odelt_eqx.network import Network
from odelt_eqx.noise import normal
from odelt_eqx.objective.base import Networks, Objective, Targets, TaughtBy, TrainingTime, X
from odelt_eqx.objective.path import (
    CouplingName,
    PathName,
    TimeName,
    choose_nearest,
    couple,
    interpolate,
    per_example,
    times_from,
)

NEGLIGIBLE = 0.01
"""The largest `sigma_min` whose noise at the end of a path the score may leave out."""


class FlowDraws(eqx.Module):
    """Draws of `FlowMatching`.

    Args:
        drop: whether an example loses its condition.
        time: uniform in [0, 1).
        noise: standard normal.
        spread: standard normal, where the path has a width.
        candidates: standard normal, more noise to choose from, where the nearest is coupled.
    """

    drop: Bool[Array, " batch"]
    time: Float[Array, " batch"]
    noise: X
    spread: X | None = None
    candidates: Float[Array, "candidates batch *shape"] | None = None


@dataclasses.dataclass(frozen=True)
class FlowMatching(Objective):
    r"""The velocity of a path from noise to data.

    `x_t` is a point of the path at `t`, plus `sigma` times noise of its own, and the target is the
    derivative of the path there; for the straight path `x_t = (1 - t) x_0 + t x_1` and
    `v = x_1 - x_0`. At full depth and at the flow field's step index. Source: arXiv 2210.02747
    (`sigma_min`), 2209.03003 (neither sigma), 2302.00482 (`sigma`, couplings), 2209.15571
    (trigonometric).

    Differs from the reference: where a path has a width, that noise is drawn with a key of its
    own; its "discrete" times are rounded to the nearest multiple, 1 included, and "grid" rounds
    down.

    Args:
        class_dropout: share of the examples that lose their condition; 1 trains without any.
        times: "uniform" draws t in [0, 1), "grid" rounds it down to a multiple of
            `1 / denoise_timesteps`, "logit-normal" prefers the middle.
        time_shift: more than 1 moves times towards the noise, as more values in an example ask
            for: the square root of how many times as many there are (arXiv 2403.03206).
        path: "straight", or "trigonometric", which preserves variance.
        coupling: "independent"; "optimal": noise and data of a batch are paired by optimal
            transport, among examples of the same class, and not where conditions are vectors; or
            "nearest": each example has the nearest of several draws of noise, see `choose_nearest`.
        candidates: how many, for "nearest".
        contrast: share `c` of contrastive flow matching (arXiv 2506.05350, which takes 0.05), that
            sets velocities under different conditions apart: the squared error to the velocity of
            another example is subtracted `c` times. Up to a factor that is the squared error to
            `(v - c v_other) / (1 - c)`. Examples that lose their condition have no contrast, and
            none has it where the network has no conditions or ignores them.
        sigma: width of the path, in units of the noise.
        sigma_min: share of the noise that is left at the end of a straight path.

    Raises:
        InputError: a name is unknown or the numbers do not fit together.
    """

    trains_steps: ClassVar[bool] = False
    taught_by: ClassVar[TaughtBy] = "data"
    class_dropout: float = 0.1
    times: TimeName = "uniform"
    time_shift: float = 1.0
    path: PathName = "straight"
    coupling: CouplingName = "independent"
    candidates: int = 8
    contrast: float = 0.0
    sigma: float = 0.0
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "time_shift", above=0)
        check_range(self, "candidates", least=1)
        check_range(self, "contrast", least=0, below=1)
        check_range(self, "sigma_min", least=0, most=1)
        check_range(self, "sigma", least=0)
        if self.times == "grid" and self.time_shift != 1:
            raise InputError(
                f"times on the grid cannot be shifted by time_shift {self.time_shift}; give times "
                "uniform or logit-normal"
            )
        if self.sigma_min and self.path != "straight":
            raise InputError(f"sigma_min belongs to the straight path, not to {self.path}")

    @property
    def needs_steps(self) -> bool:
        """Whether times lie on the grid of the steps."""
        return self.times == "grid"

    def check_network(self, network: Any) -> None:
        """Raise an InputError unless it can train a network.

        No two examples share a vector, so that pairs by optimal transport would bind each vector to
        a part of the noise, see `couple`.
        """
        super().check_network(network)
        kind = network.condition_type
        ignored = learns_null_only(kind) or self.learned == "null"
        if self.coupling == "optimal" and isinstance(kind, Vector) and not ignored:
            raise InputError(
                "coupling optimal would bind each vector of a condition to a part of the noise: "
                "give coupling independent, or a condition of classes"
            )

    @property
    def no_score(self) -> str | None:
        """What keeps the score from following from the velocity."""
        if self.path != "straight":
            return f"trains along {self.path} ones"
        if self.sigma_min > NEGLIGIBLE:
            return f"has sigma_min {self.sigma_min}"
        needed = {"coupling": "independent", "contrast": 0, "sigma": 0}
        others = [name for name, value in needed.items() if getattr(self, name) != value]
        return f"has {others[0]} {getattr(self, others[0])}" if others else None

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> FlowDraws:
        """Draw dropout of conditions, times and noise, each from a key of its own."""
        self.check_network(network)
        spread = candidates = None
        shape = (batch_size, *network.shape)
        if self.sigma:
            key, spread_key = jax.random.split(key)
            spread = normal(spread_key, shape)
        if self.coupling == "nearest":
            key, candidates_key = jax.random.split(key)
            candidates = normal(candidates_key, (self.candidates - 1, *shape))
        drop, time, noise = jax.random.split(key, 3)
        return FlowDraws(
            drop=jax.random.bernoulli(drop, self.class_dropout, (batch_size,)),
            time=jax.random.uniform(time, (batch_size,)),
            noise=normal(noise, shape),
            spread=spread,
            candidates=candidates,
        )

    def targets(
        self, draws: FlowDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the point of each path at its time, and the derivative of the path."""
        network, noise = networks.student.network, draws.noise
        if self.coupling == "optimal":
            labels = jnp.zeros(len(data), int)
            if condition is not None and condition.ndim == 1:
                labels = condition
            noise = couple(noise, data, labels)
        if draws.candidates is not None:
            noise = choose_nearest(jnp.concatenate([noise[None], draws.candidates]), data)
        t = times_from(draws.time, self.times, 2**network.flow_index, self.time_shift)
        path = lambda t: interpolate(t, noise, data, self.path, self.sigma_min)
        x_t, velocity = jax.jvp(path, (t,), (jnp.ones_like(t),))
        if draws.spread is not None:
            x_t = x_t + self.sigma * draws.spread
        if self.contrast and condition is not None and not learns_null_only(network.condition_type):
            other = jnp.roll(velocity, 1, axis=0)  # a batch is in no order
            apart = (velocity - self.contrast * other) / (1 - self.contrast)
            velocity = jnp.where(per_example(draws.drop, data), velocity, apart)
        return Targets(
            x_t=x_t,
            t=t,
            step_index=jnp.full(len(t), network.flow_index, jnp.int32),
            condition=drop_condition(network.condition_type, condition, draws.drop),
            velocity=velocity,
        )
