"""Deep supervision: every depth regresses on the target, in one pass."""

import dataclasses
import math
from typing import Any, Literal

from jaxtyping import Array, Key

from odelt_eqx.condition import Condition
from odelt_eqx.errors import InputError, check_range
from odelt_eqx.network import Network
from odelt_eqx.objective.base import (
    Edges,
    Networks,
    Targets,
    TrainingTime,
    WrappingObjective,
    X,
)
from odelt_eqx.objective.shortcut import Shortcut
from odelt_eqx.objective.time import TimeObjective

DeepTeacher = Literal["average", "student"]


@dataclasses.dataclass(frozen=True)
class DeepSupervision(WrappingObjective):
    r"""Train another objective at every depth at once.

    One integration gives the velocity $v_l$ at each depth $l$, and the loss is

    $$\sum_l w_l \| v_l - y_l \|^2, \qquad y_L = y, \quad y_l = (1 - s) y + s \bar v_L$$

    with $y$ the wrapped objective's target and $\bar v_L$ the velocity at the full depth, as a
    constant. So a step costs what one at the full depth does. Source: arXiv 1409.5185. It needs a
    network that is `anytime`.

    Args:
        objective: what is trained.
        weights: $w_l$ up to a factor, from the smallest depth; all the same by default.
        share: $s$, how much the full depth teaches the others.
        teacher: the full depth of the "average", at the cost of a forward pass, or of the
            "student" itself, in the same pass.

    Raises:
        InputError: a number is out of range, or `teacher` is neither.
    """

    objective: TimeObjective = Shortcut()
    weights: tuple[float, ...] = ()
    share: float = 0.0
    teacher: DeepTeacher = "student"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", tuple(self.weights))
        check_range(self, "share", least=0, most=1)
        if not all(0 < weight < math.inf for weight in self.weights):
            raise InputError(f"weights must be positive; got {self.weights}")

    def check_network(self, network: Any) -> None:
        """Raise an InputError unless it can train a network, see `Objective`."""
        super().check_network(network)
        if not network.anytime:
            raise InputError(
                "deep supervision needs a network that is not told its depth beforehand: give "
                "--model.length-embedding none or edge"
            )
        if self.weights and len(self.weights) != len(network.depths):
            raise InputError(
                f"there must be a weight for each depth {network.depths}; got {self.weights}"
            )

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> Any:
        """Draw for the wrapped objective; an InputError if the network does not fit."""
        self.check_network(network)
        return self.objective.draw(key, batch_size, network, when)

    def targets(
        self, draws: Any, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the wrapped objective's targets, for every depth."""
        base = self.objective.targets(draws, data, condition, networks)
        depths = networks.student.network.depths
        weights = self.weights or (1.0,) * len(depths)
        teacher = None
        if self.share and self.teacher == "average":
            inputs = (base.t, base.x_t, base.step_index, base.condition)
            teacher = networks.average(*inputs, guidance=base.told)
        edges = Edges(tuple(w / sum(weights) for w in weights), self.share, teacher)
        return dataclasses.replace(base, depth=depths, edges=edges)
