"""Every depth should answer what another depth answers."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import Objective, Targets, Teacher
from odelt_eqx.objective.flow_matching import FlowMatching
from odelt_eqx.objective.shortcut import Shortcut, share


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
    target is the teacher's velocity at a depth of its own. Source: arXiv 2506.21714.

    Depths are stratified: they are dealt out in turn, so each gets an equal share of the batch and
    all pairs of student and teacher occur alike. Examples come in random order, so the draw is as
    random as before; and since it is known while tracing, no block runs for an example that is
    done. Differs from the reference, unless `as_published`: it draws every depth independently and
    runs all blocks, masked.

    Args:
        objective: what is trained.
        every: one example in `every` learns from the teacher's velocity.
        as_published: draw depths as the reference does, at its cost.
    """

    objective: FlowMatching | Shortcut = Shortcut()
    every: int = 8
    as_published: bool = False

    @property
    def trains_steps(self) -> bool:
        """Whether the wrapped objective does."""
        return self.objective.trains_steps

    def draw(self, key: Key[Array, ""], batch_size: int, config: DiTConfig) -> LengthDraws:
        """Draw for the wrapped objective and deal out the depths, the deepest first."""
        depths = np.array(config.depths[::-1])
        last = share(batch_size, self.every)
        if self.as_published:
            key, student_key, teacher_key = jax.random.split(key, 3)
            student = jax.random.choice(student_key, depths, (batch_size,))
            teacher = jax.random.choice(teacher_key, depths, (last,))
        else:
            student = depths[np.arange(batch_size) % len(depths)]
            teacher = depths[np.arange(last) // len(depths) % len(depths)]
        return LengthDraws(self.objective.draw(key, batch_size, config), student, teacher)

    def targets(
        self,
        draws: LengthDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        teacher: Teacher,
    ) -> Targets:
        """Return the wrapped objective's targets, the last ones replaced by the teacher's."""
        base = self.objective.targets(draws.objective, images, labels, teacher)
        n = len(draws.teacher)
        velocity = teacher(
            base.t[-n:], base.x_t[-n:], base.step_index[-n:], base.labels[-n:], draws.teacher
        )
        return dataclasses.replace(
            base,
            velocity=jnp.concatenate([base.velocity[:-n], velocity]),
            depth=draws.student,
        )
