"""What every training objective is: draws, and what they make of a batch."""

import abc
import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.ode.plan import undifferentiated

TaughtBy = Literal["data", "student", "average", "frozen", "stages"]


class Targets(eqx.Module):
    """A regression problem: the velocity of `x_t` at `t` should be `velocity`.

    Args:
        x_t: states.
        t: times.
        step_index: step indices the network is told; a step of size `s` has `-log2(s)`.
        labels: labels the network is told.
        velocity: what it should answer.
        depth: blocks each example runs, see `DiT`.
        power: how far errors are evened out: an example's squared error `e` counts
            `e / (e + 0.001) ** power`, the denominator taken as a constant. None for not at all.
    """

    x_t: Float[Array, "batch height width channels"]
    t: Float[Array, " batch"]
    step_index: Real[Array, " batch"]
    labels: Int[Array, " batch"]
    velocity: Float[Array, "batch height width channels"]
    depth: int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None
    power: Float[Array, " batch"] | None = None


class Teacher(eqx.Module):
    """A network that targets come from; no gradient reaches its weights."""

    model: DiT

    @property
    def config(self) -> DiTConfig:
        """The shape of the network."""
        return self.model.config

    def __call__(
        self,
        t: Float[Array, " batch"],
        x: Float[Array, "batch height width channels"],
        step_index: Real[Array, " batch"],
        labels: Int[Array, " batch"],
        depth: int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Return the velocity at `depth`, by default at full depth."""
        depth = self.config.depth if depth is None else depth
        length = undifferentiated(self.config.length)
        # The weights, not the answer: a derivative along x and t may still be asked for.
        model = jax.lax.stop_gradient(self.model)
        return model(t, x, step_index, labels, depth=depth, length=length)


class Networks(eqx.Module):
    """The networks that targets may come from, by their role.

    Args:
        student: what is trained.
        average: its moving average.
        teacher: what teaches the time axis: the average, or what `Objective.taught_by` says.
    """

    student: Teacher
    average: Teacher
    teacher: Teacher

    @classmethod
    def all(cls, model: DiT) -> "Networks":
        """Return one network in every role."""
        return cls(Teacher(model), Teacher(model), Teacher(model))

    @property
    def config(self) -> DiTConfig:
        """The shape of the network that is trained."""
        return self.student.config


class TrainingTime(eqx.Module):
    """How far training is.

    Args:
        step: steps done.
        steps: steps of the whole run.
    """

    step: int | Int[Array, ""]
    steps: int = eqx.field(static=True)

    def stage(self, count: int) -> Int[Array, ""]:
        """Return which of `count` equal stages of the run this is, counted from 0.

        Raises:
            InputError: there is no stage.
        """
        if count < 1:
            raise InputError("an objective with stages needs denoise_timesteps of at least 2")
        # In integers: a share of the run in float32 would round across the edges of stages.
        return jnp.clip(self.step * count // self.steps, 0, count - 1).astype(jnp.int32)

    def starts_stage(self, count: int) -> Bool[Array, ""]:
        """Return whether a stage other than the first begins here."""
        return self.stage(count) != TrainingTime(self.step - 1, self.steps).stage(count)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """Abstract base of the objectives: chance in `draw`, arithmetic in `targets`."""

    @property
    @abc.abstractmethod
    def trains_steps(self) -> bool:
        """Whether the network learns what a step index means."""

    @property
    @abc.abstractmethod
    def taught_by(self) -> TaughtBy:
        """Who teaches the time axis.

        "data": nobody. "student", "average": what is trained or its average, unless a frozen
        network is given. "frozen": a network that must be given. "stages": one that must be given
        and becomes a copy of the average whenever a stage of the training begins.
        """

    @abc.abstractmethod
    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> Any:
        """Return every random draw that a batch needs, and what the schedule says.

        Args:
            key: used once.
            batch_size: examples in the batch.
            config: the network's shape.
            when: how far training is.

        Raises:
            InputError: the batch is too small for the objective's shares of it.
        """

    @abc.abstractmethod
    def targets(
        self,
        draws: Any,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return what the network regresses on, a function of its arguments alone.

        Args:
            draws: what `draw` returned.
            images: data, in [-1, 1].
            labels: their classes.
            networks: what targets may come from.
        """


def share(batch_size: int, every: int) -> int:
    """Return how many of a batch are one in `every`; an InputError if that is none."""
    if not 1 <= every <= batch_size:
        raise InputError(f"every must lie between 1 and the batch size {batch_size}; got {every}")
    return batch_size // every


def joined(first: Targets, rest: Targets) -> Targets:
    """Return one batch of two, at the depth of `rest`."""
    arrays = (eqx.filter(targets, eqx.is_array) for targets in (first, rest))
    return eqx.combine(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *arrays), rest)
