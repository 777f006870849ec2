"""What every training objective is: draws, and what they make of a batch."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.nn.dit import DiT, DiTConfig


class Targets(eqx.Module):
    """A regression problem: the velocity of `x_t` at `t` should be `velocity`.

    Args:
        x_t: states.
        t: times.
        step_index: step indices the network is told.
        labels: labels the network is told.
        velocity: what it should answer.
        depth: blocks each example runs, see `DiT`.
    """

    x_t: Float[Array, "batch height width channels"]
    t: Float[Array, " batch"]
    step_index: Int[Array, " batch"]
    labels: Int[Array, " batch"]
    velocity: Float[Array, "batch height width channels"]
    depth: int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None


class Teacher(eqx.Module):
    """The network that some targets come from; no gradient passes through it."""

    model: DiT

    @property
    def config(self) -> DiTConfig:
        """The shape of the network."""
        return self.model.config

    def __call__(
        self,
        t: Float[Array, " batch"],
        x: Float[Array, "batch height width channels"],
        step_index: Int[Array, " batch"],
        labels: Int[Array, " batch"],
        depth: int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Return the velocity at `depth`, by default at full depth."""
        depth = self.config.depth if depth is None else depth
        return jax.lax.stop_gradient(self.model(t, x, step_index, labels, depth=depth))


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """Abstract base of the objectives: chance in `draw`, arithmetic in `targets`."""

    @property
    @abc.abstractmethod
    def trains_steps(self) -> bool:
        """Whether the network learns what a step index means."""

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], batch_size: int, config: DiTConfig) -> Any:
        """Return every random draw that a batch needs.

        Args:
            key: used once.
            batch_size: examples in the batch.
            config: the network's shape.

        Raises:
            InputError: the batch is too small for the objective's shares of it.
        """

    @abc.abstractmethod
    def targets(
        self,
        draws: Any,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        teacher: Teacher,
    ) -> Targets:
        """Return what the network regresses on, a function of its arguments alone.

        Args:
            draws: what `draw` returned.
            images: data, in [-1, 1].
            labels: their classes.
            teacher: the network that targets may come from.
        """
