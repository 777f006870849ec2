"""What every training objective is: random draws, and the targets that follow from them."""

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from odelt_eqx.condition import Condition, Guidance, Learned
from odelt_eqx.errors import InputError, check_choices, check_range
from odelt_eqx.guidance import guided_velocity
from odelt_eqx.network import Network, hidden_state, raise_failures_of_length
from odelt_eqx.ode.plan import without_recomputing

TaughtBy = Literal["data", "student", "average", "frozen", "stages"]
ExampleDepth = int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | Literal["full"]
X = Float[Array, "batch *shape"]
"""Data, noise, states or velocities."""
BEND = 0.05
"""Where the smooth-l1 distance of hidden states turns from quadratic to linear."""


class Edges(eqx.Module):
    """How velocities at several depths are trained at once.

    Args:
        weights: of the squared error at each depth; their sum is 1.
        share: of the target at all depths but the last, how much is `teacher` instead.
        teacher: a velocity, or None for the network's own at the last depth, as a constant.
    """

    weights: tuple[float, ...]
    share: float = 0.0
    teacher: X | None = None


class Alignment(eqx.Module):
    """What the hidden state at a depth is trained to predict besides.

    Args:
        depth: blocks after which it is read.
        hidden: what the network's `projector` should make of it, (batch, *tokens, width).
        weight: of the mean distance, beside the squared error of the velocity.
    """

    depth: int
    hidden: Float[Array, "batch *tokens width"]
    weight: float

    def distance(self, predicted: Float[Array, "batch *tokens width"]) -> Float[Array, " batch"]:
        """Return the mean smooth-l1 distance of each example: quadratic below `BEND`."""
        off = jnp.abs(predicted - self.hidden)
        each = jnp.where(off < BEND, off**2 / (2 * BEND), off - BEND / 2)
        return jnp.mean(each, axis=range(1, each.ndim))


class Targets(eqx.Module):
    """A regression problem: what a network should return for what it is given.

    Args:
        step_index: a step of size `s` has `-log2(s)`.
        velocity: what the network should return.
        depth: blocks that each example runs, see `Network`; a tuple for the velocities at all of
            these depths, from one integration.
        power: weighting of errors: the squared error `e` of an example counts
            `e / (e + 0.001) ** power`, the denominator a constant. None: no weighting.
        edges: how the errors at a tuple of depths are counted.
        alignment: what the hidden state at one depth predicts, or None; with a tuple of depths.
        guidance: what the network is told of guidance, where it is.
    """

    x_t: X
    t: Float[Array, " batch"]
    step_index: Real[Array, " batch"]
    condition: Condition | None
    velocity: X
    depth: ExampleDepth | tuple[int, ...] = "full"
    power: Float[Array, " batch"] | None = None
    edges: Edges | None = None
    guidance: Guidance | None = None
    alignment: Alignment | None = None

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that training logs, by name."""
        return ("loss",) if self.alignment is None else ("loss", "alignment")

    @property
    def told(self) -> Guidance | float:
        """What a `Teacher` takes to give the velocity of the same input."""
        return 1.0 if self.guidance is None else self.guidance


class Teacher(eqx.Module):
    """A network that targets come from; no gradient reaches its weights."""

    network: Network

    def __call__(
        self,
        t: Float[Array, "*#batch"],
        x: X,
        step_index: Real[Array, "*#batch"],
        condition: Condition | None,
        *,
        depth: ExampleDepth = "full",
        guidance: float | Float[Array, ""] | Guidance = 1.0,
    ) -> X:
        """Return the guided velocity at `depth`, see `guided_velocity`."""
        length = without_recomputing(self.network.length)
        # The weights, not the result: a derivative along x and t may still be taken.
        weights, rest = eqx.partition(self.network, eqx.is_array)
        network = eqx.combine(jax.lax.stop_gradient(weights), rest)
        velocity, stats = guided_velocity(
            network, t, x, step_index, condition, guidance, depth, length=length
        )
        return raise_failures_of_length(velocity, stats, length)

    def hidden(
        self,
        t: Float[Array, " batch"],
        x: X,
        step_index: int | Real[Array, " batch"],
        condition: Condition | None,
        *,
        depth: int,
        guidance: Guidance | None = None,
    ) -> Float[Array, "batch *tokens width"]:
        """Return the hidden state at `depth`, where the integration ends; it is a constant.

        Raises:
            InputError: the network does not give it.
        """
        length = without_recomputing(self.network.length)
        _, stats = self.network.evaluate(
            t, x, step_index, condition, (depth,), length, guidance=guidance, hidden=depth
        )
        return jax.lax.stop_gradient(hidden_state(stats))


class Networks(eqx.Module):
    """The networks that targets may come from, by their role.

    Args:
        student: the network that is trained.
        average: its moving average.
        teacher: teaches the time axis: the average, or what `Objective.taught_by` says.
    """

    student: Teacher
    average: Teacher
    teacher: Teacher

    @classmethod
    def all(cls, network: Network) -> "Networks":
        """Return one network in every role."""
        return cls(Teacher(network), Teacher(network), Teacher(network))


class TrainingTime(eqx.Module):
    """How far training is: `step` of `steps` are done."""

    step: int | Int[Array, ""]
    steps: int = eqx.field(static=True)

    def stage(self, count: int) -> Int[Array, ""]:
        """Return which of `count` equal stages of the run this is, from 0."""
        if count < 1:
            raise InputError("an objective with stages needs denoise_timesteps of at least 2")
        # In integers: a share of the run in float32 would round across the edges of stages.
        return jnp.clip(self.step * count // self.steps, 0, count - 1).astype(jnp.int32)

    def starts_stage(self, count: int) -> Bool[Array, ""]:
        """Return whether a stage other than the first starts here."""
        return self.stage(count) != TrainingTime(self.step - 1, self.steps).stage(count)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What a network regresses on: randomness in `draw`, arithmetic in `targets`. Abstract.

    Attributes:
        trains_steps: whether the network learns what a step index means.
        taught_by: what teaches the time axis. "data": no network. "student", "average": the trained
            network or its average, unless a teacher is given. "frozen": a network that must be
            given. "stages": one that must be given and is replaced by a copy of the average
            whenever a stage of the training starts.
        has_stages: whether the draws depend on which share of the run is done, so that its number
            of steps cannot change.
    """

    trains_steps: ClassVar[bool]
    taught_by: ClassVar[TaughtBy]
    has_stages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check names, and the ranges of the numbers that objectives have in common."""
        check_choices(self)
        names = {field.name for field in dataclasses.fields(self)}
        check_range(self, *names & {"steps", "every"}, least=1)
        check_range(self, *names & {"class_dropout"}, least=0, most=1)
        check_range(self, *names & {"power"}, least=0)
        check_range(self, *names & {"guidance"})
        getattr(self, "flow", None)  # flow matching with the same fields checks them

    @property
    def trains_depths(self) -> bool:
        """Whether other depths than the full one are trained."""
        return False

    @property
    def needs_steps(self) -> bool:
        """Whether it trains steps, or at times on their grid: with one time step there are none."""
        return self.trains_steps or self.has_stages

    def check_network(self, network: Any) -> None:
        """Raise an InputError unless it can train a network; its config says as much of it."""
        if self.needs_steps and network.flow_index < 1:
            raise InputError(
                f"{type(self).__name__} trains steps, or at times on their grid, which needs "
                "denoise_timesteps of at least 2, a flow_index of at least 1; got a flow_index "
                f"of {network.flow_index}"
            )

    @property
    def learned(self) -> Learned:
        """Which conditions it teaches, by its `class_dropout` and `guidance`, if it has them."""
        dropout, guidance = getattr(self, "class_dropout", None), getattr(self, "guidance", 1)
        if guidance == 0 or dropout == 1:
            return "null"
        return "condition" if dropout == 0 else "both"

    @property
    def no_score(self) -> str | None:
        """What keeps the score from following from the velocity, in words; None if nothing does.

        It does, as `-(x - t v) / (1 - t)`, where the network learns the flow field of straight
        paths from normal noise that is independent of the data.
        """
        return None

    @abc.abstractmethod
    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> Any:
        """Draw all randomness for one batch, and what the schedule says.

        Of `network` the shape, depths and the like are used, not the weights.

        Raises:
            InputError: the batch is too small for the objective's shares of it, or `check_network`
                refuses the network.
        """

    @abc.abstractmethod
    def targets(
        self, draws: Any, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return what the network regresses on, a pure function of its arguments.

        Args:
            draws: what `draw` returned.
            data: examples, (batch, *shape), with their conditions.
        """


@dataclasses.dataclass(frozen=True)
class WrappingObjective(Objective):
    """An objective around another, whose schedule and conditions are its own: abstract."""

    objective: Any

    @property
    def trains_depths(self) -> bool:
        """Whether other depths than the full one are trained."""
        return True

    @property
    def trains_steps(self) -> bool:
        """Whether the wrapped objective does."""
        return self.objective.trains_steps

    @property
    def taught_by(self) -> TaughtBy:
        """What teaches the wrapped objective; depths are taught by the average."""
        return self.objective.taught_by

    @property
    def has_stages(self) -> bool:
        """Whether the wrapped objective has."""
        return self.objective.has_stages

    @property
    def needs_steps(self) -> bool:
        """Whether the wrapped objective does."""
        return self.objective.needs_steps

    def check_network(self, network: Any) -> None:
        """Raise an InputError unless the wrapped objective can train a network."""
        self.objective.check_network(network)

    @property
    def learned(self) -> Learned:
        """Which conditions the wrapped objective teaches."""
        return self.objective.learned

    @property
    def no_score(self) -> str | None:
        """What keeps the score from following from what the wrapped objective teaches."""
        return self.objective.no_score


def innermost(objective: Objective) -> Objective:
    """Return the objective of the time axis, out of all that wraps it."""
    while isinstance(objective, WrappingObjective):
        objective = objective.objective
    return objective


def share(batch_size: int, every: int) -> int:
    """Return how many of a batch are one in `every`; an InputError if that is none."""
    if not 1 <= every <= batch_size:
        raise InputError(f"every must lie between 1 and the batch size {batch_size}; got {every}")
    return batch_size // every


def join(first: Targets, rest: Targets) -> Targets:
    """Return the targets of two parts of a batch as one, at the depth of `rest`."""
    arrays = (eqx.filter(targets, eqx.is_array) for targets in (first, rest))
    return eqx.combine(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *arrays), rest)


def split(condition: Condition | None, count: int) -> tuple[Array | None, Array | None]:
    """Return the conditions of the first `count` examples, and of the others."""
    return (None, None) if condition is None else (condition[:count], condition[count:])


def asked(guidance: float, condition: Condition | None, network: Network) -> Condition | None:
    """Return `condition`, or the null condition if a guidance of 0 trains without conditions."""
    if condition is None or guidance != 0:
        return condition
    return network.null(len(condition))
