"""Length consistency: every depth should return what another depth returns."""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from odelt_eqx.condition import Condition
from odelt_eqx.network import Network
from odelt_eqx.objective.base import (
    Networks,
    Targets,
    TrainingTime,
    WrappingObjective,
    X,
    share,
    split,
)
from odelt_eqx.objective.shortcut import Shortcut
from odelt_eqx.objective.time import TimeObjective

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
class DrawnDepths(WrappingObjective):
    """Another objective, trained at depths that `draw` chooses: abstract."""

    def targets(
        self, draws: LengthDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the wrapped objective's targets, the last ones replaced by another depth's."""
        base = self.objective.targets(draws.objective, data, condition, networks)
        n = len(draws.teacher)
        _, labels = split(base.condition, len(base.t) - n)
        last = (base.t[-n:], base.x_t[-n:], base.step_index[-n:], labels)
        told = jax.tree.map(lambda each: each[-n:], base.told) if base.guidance else base.told
        velocity = networks.average(*last, depth=draws.teacher, guidance=told)
        power = base.power
        if power is not None:
            # Depths agree while they know nothing: weighting their errors would hold them there.
            power = power.at[-n:].set(0.0)
        return dataclasses.replace(
            base,
            velocity=jnp.concatenate([base.velocity[:-n], velocity]),
            depth=draws.student,
            power=power,
        )


@dataclasses.dataclass(frozen=True)
class LengthConsistency(DrawnDepths):
    """Train another objective at every depth, and the depths to agree.

    Each example runs at one of the network's depths; for the last `1 / every` of the batch the
    target is the velocity of the network's own average at a depth of its own. Source: arXiv
    2506.21714.

    Depths are stratified: dealt in turn, so each gets an equal share of the batch and all pairs of
    student and teacher are equally frequent. Examples come in random order, so the draw is as
    random as before; and since it is known while tracing, no block runs for an example that is
    done. Differs from the reference (`odelt_eqx.interop.PublishedLengthConsistency`), which draws
    every depth independently and runs all blocks, masked.

    Args:
        objective: what is trained.
        every: one example in `every` learns from another depth.
        teacher_depth: "any" depth teaches, independently of the student's as published, or only a
            "deeper" or equal one.

    Raises:
        InputError: `teacher_depth` is neither.
    """

    objective: TimeObjective = Shortcut()
    every: int = 8
    teacher_depth: TeacherDepth = "any"

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> LengthDraws:
        """Draw for the wrapped objective and deal the depths, the deepest first."""
        depths = np.array(network.depths[::-1])
        last = share(batch_size, self.every)
        turn = np.arange(batch_size) % len(depths)
        deepest_first = np.arange(last) // len(depths)
        allowed = len(depths) if self.teacher_depth == "any" else turn[-last:] + 1
        return LengthDraws(
            objective=self.objective.draw(key, batch_size, network, when),
            student=depths[turn],
            teacher=depths[deepest_first % allowed],
        )
