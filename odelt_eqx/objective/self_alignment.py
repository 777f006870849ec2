"""Self-alignment: hidden states predict those of the average, deeper and with less noise."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition
from odelt_eqx.errors import InputError, check_range
from odelt_eqx.network import Network, has_projector
from odelt_eqx.objective.base import (
    Alignment,
    Edges,
    Networks,
    Objective,
    Targets,
    TrainingTime,
    WrappingObjective,
    X,
)
from odelt_eqx.objective.deep_supervision import DeepSupervision
from odelt_eqx.objective.flow_matching import FlowMatching
from odelt_eqx.objective.mean_flow import MeanFlow
from odelt_eqx.objective.path import approach
from odelt_eqx.objective.shortcut import Shortcut
from odelt_eqx.objective.time import TimeObjective


class AlignmentDraws(eqx.Module):
    """Draws of `SelfAlignment`.

    Args:
        objective: draws of the objective that is wrapped.
        shift: uniform in [0, 1), by how much later the teacher's time is, in `max_shift`.
    """

    objective: Any
    shift: Float[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class SelfAlignment(WrappingObjective):
    r"""Train another objective, and hidden states to predict deeper, less noisy ones.

    With $h_l(t, x_t)$ the hidden state at depth $l$ and $f$ the network's `projector`,

    $$\lambda \, d\big(f(h_l(t, x_t)), \; n(\bar h_m(s, x_s))\big), \qquad
    s = \min(t + k, 1), \quad k \sim U[0, k_{max}], \quad m > l$$

    is added to the wrapped objective's loss: $\bar h_m$ is the average's, as a constant, $x_s$ is
    on the same path as $x_t$, $n$ normalises every token to mean 0 and variance 1, and $d$ is the
    mean smooth-l1 distance with its bend at 0.05. The student's states come from the pass that
    gives its velocities; the average's cost a forward pass to $m$. Source: arXiv 2505.02831, whose
    weight, shift and distance these are. It needs a network that is `anytime`.

    Differs from the paper: $n$, which is what the next block does with the state; without it the
    published wiring doubles the states' norm with every group, and the paper's authors report that
    norms grow in training, against which their code lowers the weight. The projector normalises its
    input as well. Steps are aligned to the teacher's flow field.

    Args:
        objective: what is trained: `FlowMatching`, `Shortcut` or `MeanFlow`, whose states are on a
            path to the data, or `DeepSupervision` around one of these.
        weight: $\lambda$.
        max_shift: $k_{max}$.
        depth: $l$, in blocks; by default the smallest depth.
        teacher_depth: $m$, in blocks; by default the one two thirds of the way up the depths.

    Raises:
        InputError: a number is out of range, or `objective` is another.

    Example:
        >>> objective = odelt.objective.SelfAlignment(odelt.objective.FlowMatching(), max_shift=0.1)
        >>> objective.edges((4, 8, 12))
        (4, 8)
    """

    objective: TimeObjective | DeepSupervision = DeepSupervision()
    weight: float = 0.2
    max_shift: float = 0.2
    depth: int | None = None
    teacher_depth: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and that the wrapped objective has a path."""
        super().__post_init__()
        check_range(self, "weight", above=0)
        check_range(self, "max_shift", least=0, most=1)
        path_of(self.objective)

    @property
    def trains_depths(self) -> bool:
        """Whether the wrapped objective trains other depths than the full one."""
        return self.objective.trains_depths

    def check_network(self, network: Any) -> None:
        """Raise an InputError unless it can train a network, see `Objective`."""
        super().check_network(network)
        if not network.anytime:
            raise InputError(
                "self-alignment needs a network that is not told its depth beforehand: give "
                "--model.length-embedding none or edge"
            )
        if not has_projector(network):
            raise InputError(
                "self-alignment needs a network with a projector: give --model.projector"
            )
        self.edges(network.depths)

    def edges(self, depths: tuple[int, ...]) -> tuple[int, int]:
        """Return the depths of student and teacher; an InputError if these `depths` have none."""
        default = depths[(2 * len(depths) - 1) // 3]
        student = depths[0] if self.depth is None else self.depth
        teacher = default if self.teacher_depth is None else self.teacher_depth
        if not {student, teacher} <= set(depths) or student >= teacher:
            raise InputError(
                "self-alignment needs a depth and a deeper teacher_depth, both among "
                f"{', '.join(map(str, depths))} (in blocks); got {student} and {teacher}"
            )
        return student, teacher

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> AlignmentDraws:
        """Draw for the wrapped objective, and the shifts; an InputError if no network fits."""
        self.check_network(network)
        key, shift_key = jax.random.split(key)
        return AlignmentDraws(
            objective=self.objective.draw(key, batch_size, network, when),
            shift=jax.random.uniform(shift_key, (batch_size,)),
        )

    def targets(
        self, draws: AlignmentDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the wrapped objective's targets, and the hidden states to predict."""
        base = self.objective.targets(draws.objective, data, condition, networks)
        network, path = networks.student.network, path_of(self.objective)
        student, teacher = self.edges(network.depths)
        later = jnp.minimum(base.t + self.max_shift * draws.shift, 1.0)
        x_later = approach(base.t, later, base.x_t, data, path.path, path.sigma_min)
        inputs = (later, x_later, network.flow_index, base.condition)
        hidden = networks.average.hidden(*inputs, depth=teacher, guidance=base.guidance)
        hidden = jax.nn.standardize(hidden, axis=-1, epsilon=1e-6)
        return dataclasses.replace(
            base,
            depth=base.depth if isinstance(base.depth, tuple) else (network.depth,),
            edges=Edges((1.0,)) if base.edges is None else base.edges,
            alignment=Alignment(student, hidden, self.weight),
        )


def path_of(objective: Objective) -> FlowMatching:
    """Return flow matching on the path that the states of an objective are on.

    Raises:
        InputError: they are on none from noise to the data, or examples run at their own depths.
    """
    inner = objective.objective if isinstance(objective, DeepSupervision) else objective
    if isinstance(inner, FlowMatching):
        return inner
    if isinstance(inner, Shortcut | MeanFlow):
        return inner.flow
    if isinstance(objective, WrappingObjective) and not isinstance(objective, DeepSupervision):
        raise InputError(
            "self-alignment needs all depths in one pass, or one: name deep-supervision before it; "
            f"got {type(objective).__name__}"
        )
    raise InputError(
        "self-alignment needs states on a path to the data: those of flow matching (rfm and the "
        f"like), shortcut or mean-flow; got {type(inner).__name__}"
    )
