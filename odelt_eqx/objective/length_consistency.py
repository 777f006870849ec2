"""Every depth should answer what another depth answers."""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    share,
)
from odelt_eqx.objective.path import check_name
from odelt_eqx.objective.shortcut import Shortcut
from odelt_eqx.objective.table import TimeObjective

TeacherDepth = Literal["any", "deeper"]


class LengthDraws(eqx.Module):
    """Draws of `LengthConsistency`.

    Args:
        objective: draws of the objective that is wrapped.
        student: blocks that each example runs.
        teacher: blocks that the teacher runs for each of the last examples.
    """

    objective: Any
    student: Int[np.ndarray, " batch"] | Int[Array, " batch"]
    teacher: Int[np.ndarray, " last"] | Int[Array, " last"]


@dataclasses.dataclass(frozen=True)
class LengthConsistency(Objective):
    """Train another objective at every depth, and the depths to agree.

    Each example runs at one of the network's depths; for the last `1 / every` of the batch the
    target is the velocity of the network's own average at a depth of its own. Source: arXiv
    2506.21714.

    Depths are stratified: they are dealt out in turn, so each gets an equal share of the batch and
    all pairs of student and teacher occur alike. Examples come in random order, so the draw is as
    random as before; and since it is known while tracing, no block runs for an example that is
    done. Differs from the reference, unless `as_published`: it draws every depth independently and
    runs all blocks, masked.

    Args:
        objective: what is trained.
        every: one example in `every` learns from another depth.
        teacher_depth: "any" depth teaches, drawn independently of the student's as published, or
            only a "deeper" or equal one.
        as_published: draw depths as the reference does, at its cost.

    Raises:
        InputError: `teacher_depth` is neither, or not what was published.
    """

    objective: TimeObjective = Shortcut()
    every: int = 8
    teacher_depth: TeacherDepth = "any"
    as_published: bool = False

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        check_name("teacher_depth", self.teacher_depth, TeacherDepth)
        if self.as_published and self.teacher_depth != "any":
            raise InputError("as_published draws the teacher's depth from all; leave out one")

    @property
    def trains_steps(self) -> bool:
        """Whether the wrapped objective does."""
        return self.objective.trains_steps

    @property
    def taught_by(self) -> TaughtBy:
        """Who teaches the wrapped objective; depths are always taught by the average."""
        return self.objective.taught_by

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> LengthDraws:
        """Draw for the wrapped objective and deal out the depths, the deepest first."""
        depths = np.array(config.depths[::-1])
        last = share(batch_size, self.every)
        if self.as_published:
            key, student_key, teacher_key = jax.random.split(key, 3)
            student = jax.random.choice(student_key, depths, (batch_size,))
            teacher = jax.random.choice(teacher_key, depths, (last,))
        else:
            turn = np.arange(batch_size) % len(depths)
            deepest_first = np.arange(last) // len(depths)
            allowed = len(depths) if self.teacher_depth == "any" else turn[-last:] + 1
            student, teacher = depths[turn], depths[deepest_first % allowed]
        return LengthDraws(self.objective.draw(key, batch_size, config, when), student, teacher)

    def targets(
        self,
        draws: LengthDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return the wrapped objective's targets, the last ones replaced by another depth's."""
        base = self.objective.targets(draws.objective, images, labels, networks)
        n = len(draws.teacher)
        velocity = networks.average(
            base.t[-n:], base.x_t[-n:], base.step_index[-n:], base.labels[-n:], draws.teacher
        )
        power = base.power
        if power is not None:
            # Depths agree while they know nothing: evened out, that would hold them there.
            power = power.at[-n:].set(0.0)
        return dataclasses.replace(
            base,
            velocity=jnp.concatenate([base.velocity[:-n], velocity]),
            depth=draws.student,
            power=power,
        )
