"""What the rest of the package knows of a network, and guidance.

Objectives, samplers, likelihood, training and evaluation see a `Network`: a velocity field whose
depth can be chosen. How it is built is its own business; `odelt_eqx.nn` has two.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, Real

from odelt_eqx.errors import InputError
from odelt_eqx.ode.length import LengthStats, take_rows
from odelt_eqx.ode.plan import Adaptive, Plan

Condition = Int[Array, " batch"] | Float[Array, "batch condition_size"]
ConditionLike = Condition | Sequence[int | float] | Real[Array, "*any"] | Real[np.ndarray, "*any"]
"""What `as_condition` takes: labels may also be a list, or floats that are whole numbers."""
Depth = int | Literal["full", "plain"] | Int[np.ndarray, " batch"] | Int[Array, " batch"]


Learned = Literal["both", "condition", "null"]
"""What a network was trained on: conditions, the null condition that stands for none, or both."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """A condition that is one of `count` classes: labels, (batch,); label `count` is none."""

    count: int
    learned: Learned = "both"

    def null(self, batch_size: int) -> Int[Array, " batch"]:
        """Return the null label for each example."""
        return jnp.full(batch_size, self.count, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Vector:
    """A condition that is a vector of numbers, (batch, size); a row of NaN stands for none."""

    size: int
    learned: Learned = "both"

    def null(self, batch_size: int) -> Float[Array, "batch condition_size"]:
        """Return the null vector for each example."""
        return jnp.full((batch_size, self.size), jnp.nan)


class Inputs(eqx.Module):
    """What a network is evaluated on: the arguments of a call, checked, one value per example.

    `depth` is not "full"; `keys` are dropout keys, or None for no dropout.
    """

    t: Float[Array, " batch"]
    x: Float[Array, "batch *shape"]
    step_index: Float[Array, " batch"]
    condition: Condition | None
    depth: Depth
    length: Plan
    keys: Key[Array, " batch"] | None = None
    exit_tolerance: float | Float[Array, ""] | None = None


class Network(eqx.Module):
    """A velocity field `dx/dt = v(t, x)` whose depth can be chosen: abstract.

    Args:
        shape: shape of one example: (height, width, channels) of images, (size,) of vectors.
        condition_type: what a condition is; None for a network without one.
        depths: depths that may be asked for, in blocks, rising; the last one is the full depth.
        flow_index: the step index that asks for the flow field itself, `log2` of the time steps
            that training knows.
        length: how each group's unit of length is solved unless a call says otherwise.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    condition_type: eqx.AbstractVar[Classes | Vector | None]
    depths: eqx.AbstractVar[tuple[int, ...]]
    flow_index: eqx.AbstractVar[int]
    length: eqx.AbstractVar[Plan]

    @abc.abstractmethod
    def velocity(self, inputs: Inputs) -> tuple[Float[Array, "batch *shape"], LengthStats]:
        """Return the velocity and what its length ODE took.

        The author of a network implements this, usually by `odelt_eqx.ode.integrate_length`;
        users call the network.
        """

    @property
    def depth(self) -> int:
        """The full depth, in blocks."""
        return self.depths[-1]

    def null(self, batch_size: int) -> Condition | None:
        """Return the condition that stands for none; None for a network without conditions."""
        return None if self.condition_type is None else self.condition_type.null(batch_size)

    def __call__(
        self,
        t: float | Float[Array, "*#batch"],
        x: Float[Array, "batch *shape"],
        step_index: int | float | Real[Array, "*#batch"],
        condition: ConditionLike | None = None,
        *,
        depth: Depth = "full",
        length: Plan | None = None,
        key: Key[Array, ""] | None = None,
        exit_tolerance: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "batch *shape"]:
        """Return the velocity dx/dt, (batch, *shape).

        Args:
            t: time, 0 noise and 1 data, one for all or one per example.
            x: states, (batch, *shape).
            step_index: the mean velocity over a step of `2 ** -step_index` is asked for, by
                `flow_index` the flow field; one for all or one per example.
            condition: class labels (batch,), vectors (batch, size), or None without a condition. A
                network that has learned the null condition alone is given that in its place.
            depth: blocks to run, one of `depths`. An int: for all examples. A NumPy array (batch,),
                known while tracing: each example leaves at its depth. A JAX array (batch,): every
                group runs, masked. "full": the full depth. "plain": every block once, without a
                length ODE.
            length: how each group's unit of length is solved; None as the network says.
            key: dropout key, or None for no dropout.
            exit_tolerance: an example stops at the first edge where the last group changed `u` by
                less than this share of it; None runs to `depth`.

        Raises:
            InputError: a shape or the depth does not fit this network.
            RuntimeError: a traced depth does not, or an adaptive `length` ran out of steps.
        """
        velocity, stats = self.evaluate(
            t, x, step_index, condition, depth, length, key, exit_tolerance
        )
        plan = self.length if length is None else length
        return raise_failures_of_length(velocity, stats, plan)

    def evaluate(
        self,
        t: float | Float[Array, "*#batch"],
        x: Float[Array, "batch *shape"],
        step_index: int | float | Real[Array, "*#batch"],
        condition: ConditionLike | None = None,
        depth: Depth = "full",
        length: Plan | None = None,
        key: Key[Array, ""] | None = None,
        exit_tolerance: float | Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch *shape"], LengthStats]:
        """Return what a call returns, and what its length ODE took.

        A length solve that runs out of steps is counted as a failure, not raised: its example
        continues from where it got to.
        """
        condition = as_condition(self, condition)
        check_batch(self, x, condition)
        condition = self.null(len(x)) if learns_null_only(self) else condition
        spread = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), x.shape[:1])
        depth = self.depth if isinstance(depth, str) and depth == "full" else depth
        depth = check_depth(depth, self.depths)
        keys = None if key is None else jax.random.split(key, len(x))
        batch = (spread(t), x, spread(step_index), condition, keys)
        order = np.arange(len(x))
        if isinstance(depth, np.ndarray):  # the deepest first: then no hidden state is reordered
            order = np.argsort(-depth, kind="stable")
            batch, depth = take_rows(batch, order), depth[order]
        t, x, step_index, condition, keys = batch
        length = self.length if length is None else length
        inputs = Inputs(t, x, step_index, condition, depth, length, keys, exit_tolerance)
        return take_rows(self.velocity(inputs), np.argsort(order))


def learns_null_only(network: Network) -> bool:
    """Whether a condition means nothing to a network."""
    kind = network.condition_type
    return kind is not None and kind.learned == "null"


def index_of_step(length: Float[Array, "*any"], flow_index: int) -> Float[Array, "*any"]:
    """Return the step index of a step, `min(-log2(length), flow_index)`, for a length of 0 too."""
    return -jnp.log2(jnp.maximum(length, 2.0**-flow_index))


def check_depth(depth: Depth, depths: tuple[int, ...]) -> Any:
    """Return `depth` if all of it is among `depths`, an integer scalar as an int.

    Raises:
        InputError: it is not; the message lists the depths.
        RuntimeError: a traced depth is not.
    """
    listed = ", ".join(map(str, depths))
    if isinstance(depth, Tracer):
        known = jnp.isin(depth, jnp.asarray(depths))
        return eqx.error_if(depth, ~known, f"depth must be one of {listed} (in blocks)")
    if isinstance(depth, str):
        if depth not in ("full", "plain"):
            raise InputError(f"depth must be one of {listed} (in blocks), full, plain; got {depth}")
        return depth
    wrong = sorted(set(np.ravel(np.asarray(depth)).tolist()) - set(depths))
    if wrong:
        raise InputError(f"depth must be one of {listed} (in blocks); got {wrong[0]}")
    return int(depth) if np.ndim(depth) == 0 else depth


def as_condition(network: Network, condition: ConditionLike | None) -> Array | None:
    """Return a condition as an array of the type that the network takes.

    Raises:
        InputError: labels are not whole numbers.
    """
    if condition is None:
        return None
    if not isinstance(network.condition_type, Classes):
        is_vector = isinstance(network.condition_type, Vector)
        return jnp.asarray(condition, jnp.float32 if is_vector else None)
    given = condition if isinstance(condition, Array) else np.asarray(condition)
    if jnp.issubdtype(given.dtype, jnp.integer):
        return jnp.asarray(given)
    known = not isinstance(given, Tracer) and jnp.issubdtype(given.dtype, jnp.floating)
    if not known or not np.array_equal(np.asarray(given), np.round(given)):
        raise InputError(f"labels must be whole numbers; got {condition}")
    return jnp.asarray(given, jnp.int32)


def check_batch(network: Network, x: Array, condition: Condition | None) -> None:
    """Raise an InputError unless states and conditions have the network's shapes."""
    if x.ndim == 0 or x.shape[1:] != network.shape:
        wanted = ", ".join(map(str, network.shape))
        raise InputError(f"states must have shape (batch, {wanted}); got {x.shape}")
    kind, shape = network.condition_type, None if condition is None else condition.shape
    wanted = None
    if isinstance(kind, Classes):
        wanted = (len(x),)
    elif isinstance(kind, Vector):
        wanted = (len(x), kind.size)
    if shape != wanted and not (shape is None and learns_null_only(network)):
        name = "labels" if isinstance(kind, Classes) else "the condition"
        raise InputError(f"{name} must have shape {wanted}; got {shape}")


def check_guidance(kind: Classes | Vector | None, guidance: Any) -> None:
    """Raise an InputError if guidance asks for a condition that a network has not learned."""
    missing = None
    if kind is None:
        missing = "without conditions"
    elif kind.learned == "null":
        missing = "that was trained without its conditions"
    number = None if isinstance(guidance, Tracer) or np.ndim(guidance) else float(guidance)
    if missing and number not in (0, 1):
        raise InputError(f"a network {missing} has no guidance; got {guidance}")
    if kind is not None and kind.learned == "condition" and number != 1:
        raise InputError(
            "this network never learned the null condition (class_dropout was 0), so guidance must "
            f"be 1; got {guidance}"
        )


def drop_condition(
    network: Network, condition: Condition | None, dropped: Bool[Array, " batch"]
) -> Condition | None:
    """Return `condition` with the null condition where `dropped`."""
    null = network.null(len(dropped))
    if condition is None or null is None:
        return None
    return jnp.where(dropped.reshape(-1, *(1,) * (null.ndim - 1)), null, condition)


def guided_velocity(
    network: Network,
    t: Float[Array, "*#batch"],
    x: Float[Array, "batch *shape"],
    step_index: int | Real[Array, "*#batch"],
    condition: Condition | None,
    guidance: float | Float[Array, "*#batch"],
    depth: Depth = "full",
    **options: Any,
) -> tuple[Float[Array, "batch *shape"], LengthStats]:
    r"""Classifier-free guidance, $v = v_\emptyset + w (v_y - v_\emptyset)$ (arXiv 2207.12598).

    Returns the velocity, and the sum of what both halves took; the arguments are those of
    `Network.evaluate`.

    Args:
        guidance: `w`, one for all or one per example. The Python numbers 1 and 0 evaluate the
            condition alone and the null condition alone; any other number, and every array,
            evaluates both in one batch.
        **options: `length` and `exit_tolerance`.

    Raises:
        InputError: the network has not learned one of the conditions that this asks for.
    """
    check_guidance(network.condition_type, guidance)
    null, number = network.null(len(x)), guidance if isinstance(guidance, int | float) else None
    if condition is None or null is None or number == 1:
        return network.evaluate(t, x, step_index, condition, depth, **options)
    if number == 0:
        return network.evaluate(t, x, step_index, null, depth, **options)
    twice = lambda a: jnp.concatenate([a, a]) if jnp.ndim(a) else a
    depth = depth if isinstance(depth, str) else twice(depth)
    both = jnp.concatenate([condition, null])
    velocity, stats = network.evaluate(
        twice(t), twice(x), twice(step_index), both, depth, **options
    )
    conditional, unconditional = jnp.split(velocity, 2)
    stats = jax.tree.map(lambda s: sum(jnp.split(s, 2)), stats)
    if jnp.ndim(guidance):
        guidance = jnp.reshape(jnp.asarray(guidance), (-1, *(1,) * (x.ndim - 1)))
    return unconditional + guidance * (conditional - unconditional), stats


def raise_failures_of_length(
    velocity: Float[Array, "batch *shape"], stats: LengthStats, plan: Plan
) -> Float[Array, "batch *shape"]:
    """Return `velocity`, which raises a RuntimeError when computed if a length solve failed."""
    if isinstance(plan, Adaptive):
        return eqx.error_if(velocity, stats.failures > 0, plan.failure("length"))
    return velocity
