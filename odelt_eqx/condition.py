"""What a network is told beside its states: a class or a vector, and guidance by it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Real

from odelt_eqx.errors import LARGEST_INTEGER, InputError

Condition = Int[Array, " batch"] | Float[Array, "batch condition_size"]
ConditionLike = Condition | Sequence[int | float] | Real[Array, "*any"] | Real[np.ndarray, "*any"]
"""What `as_condition` takes: labels may also be a list, or floats that are whole numbers."""

Learned = Literal["both", "condition", "null"]
"""What a network was trained on: conditions, the null condition that stands for none, or both."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """A condition that is one of `count` classes: labels, (batch,); label `count` is none.

    Args:
        count: number of classes.
        learned: what training teaches of it.
        max_guidance: the largest weight of guidance by the condition that the network has learned
            to be told; None for a network that is not told.

    Example:
        >>> model.condition_type
        Classes(count=10, learned='both', max_guidance=None)
    """

    count: int
    learned: Learned = "both"
    max_guidance: float | None = None

    def null(self, batch_size: int) -> Int[Array, " batch"]:
        """Return the null label for each example."""
        return jnp.full(batch_size, self.count, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Vector:
    """A condition that is a vector of numbers, (batch, size); a row of NaN stands for none.

    Args:
        size: of a vector.
        learned: what training teaches of it.
        max_guidance: see `Classes`.

    Example:
        >>> config = odelt.VectorNetConfig(
        ...     size=3, condition_size=2, hidden_size=8, depth=2, depth_min=1, depth_group=1
        ... )
        >>> config.condition_type
        Vector(size=2, learned='both', max_guidance=None)
    """

    size: int
    learned: Learned = "both"
    max_guidance: float | None = None

    def null(self, batch_size: int) -> Float[Array, "batch condition_size"]:
        """Return the null vector for each example."""
        return jnp.full((batch_size, self.size), jnp.nan)


ConditionType = Classes | Vector


class Guidance(eqx.Module):
    """Guidance by the condition that a network is told of, each one for all or one per example.

    Args:
        weight: 1 is no guidance.
        start: the time from which on it acts.
        end: the time until before which it acts; 1 for the end.

    Example:
        >>> told = dataclasses.replace(model.config, max_guidance=4.0).build(key=jax.random.key(0))
        >>> guidance = odelt.Guidance(2.0, start=0.2, end=0.7)
        >>> told(0.5, noise, 0, labels, guidance=guidance).shape
        (10, 8, 8, 1)
    """

    weight: float | Float[Array, "*#batch"] = 1.0
    start: float | Float[Array, "*#batch"] = 0.0
    end: float | Float[Array, "*#batch"] = 1.0

    def acts(self, t: Float[Array, "*#batch"]) -> Bool[Array, "*#batch"]:
        """Whether the interval holds a time."""
        return (self.start <= t) & ((t < self.end) | (jnp.asarray(self.end) == 1))


def as_condition(kind: ConditionType | None, condition: ConditionLike | None) -> Array | None:
    """Return a condition as an array of the type that a network takes.

    Raises:
        InputError: labels are not whole numbers, or another condition is no array of numbers.
    """
    if condition is None:
        return None
    try:
        if not isinstance(kind, Classes):
            return jnp.asarray(condition, jnp.float32 if isinstance(kind, Vector) else None)
        given = condition if isinstance(condition, Array) else np.asarray(condition)
    except (TypeError, ValueError):
        raise InputError(f"the condition must be numbers; got {condition!r}") from None
    if isinstance(given, Array) and jnp.issubdtype(given.dtype, jnp.integer):
        return given
    known = not isinstance(given, Tracer) and given.dtype.kind in "iuf"
    if not known or not np.all((np.round(given) == given) & (np.abs(given) <= LARGEST_INTEGER)):
        if isinstance(given, Tracer):
            raise InputError(f"labels that are traced must be integers; got {given.dtype}")
        most = f"{LARGEST_INTEGER:,} at most"
        raise InputError(f"labels must be whole numbers; got {condition} ({most})")
    return jnp.asarray(np.asarray(given), jnp.int32)


def check_condition(kind: ConditionType | None, condition: Array | None, batch_size: int) -> None:
    """Raise an InputError unless a condition has the shape that a network takes.

    Labels that are known here must be those of classes, or of none, and vectors finite, or all NaN
    for none, unless the network ignores them.
    """
    shape, wanted = None if condition is None else condition.shape, None
    if isinstance(kind, Classes):
        wanted = (batch_size,)
    elif isinstance(kind, Vector):
        wanted = (batch_size, kind.size)
    if shape != wanted and not (shape is None and learns_null_only(kind)):
        name = "labels" if isinstance(kind, Classes) else "the condition"
        if kind is None:
            raise InputError(f"this network takes no condition; got one of shape {shape}")
        raise InputError(f"{name} must have shape {wanted}; got {shape}")
    if condition is None or isinstance(condition, Tracer) or learns_null_only(kind):
        return
    if not condition.is_fully_addressable:  # in another process
        return
    values = np.asarray(condition)
    if isinstance(kind, Classes):
        wrong = values[(values < 0) | (values > kind.count)]
        if wrong.size:
            raise InputError(
                f"labels must lie between 0 and {kind.count - 1}, or be {kind.count} for none; "
                f"got {wrong[0]}"
            )
    elif not (np.isfinite(values).all(axis=1) | np.isnan(values).all(axis=1)).all():
        raise InputError("a vector of the condition must be finite, or all NaN for none")


def drop_condition(
    kind: ConditionType | None, condition: Condition | None, dropped: Bool[Array, " batch"]
) -> Condition | None:
    """Return `condition` with the null condition where `dropped`."""
    if condition is None or kind is None:
        return None
    null = kind.null(len(dropped))
    return jnp.where(dropped.reshape(-1, *(1,) * (null.ndim - 1)), null, condition)


def learns_null_only(kind: ConditionType | None) -> bool:
    """Whether a condition means nothing to a network."""
    return kind is not None and kind.learned == "null"


def is_told_guidance(kind: ConditionType | None) -> bool:
    """Whether guidance by the condition is a condition itself, and takes one evaluation."""
    return kind is not None and kind.max_guidance is not None


def as_guidance(kind: ConditionType | None, guidance: Guidance | None) -> Guidance | None:
    """Return what a network is told: none, unless asked for; None where it is not told.

    Raises:
        InputError: it is asked for, and the network is not told, or of other weights.
    """
    if is_told_guidance(kind):
        guidance = Guidance() if guidance is None else guidance
        check_weights(kind, guidance.weight)
        return guidance
    if guidance is not None:
        raise InputError(
            "this network is not told the guidance: train one with max_guidance, or use "
            "odelt.sample, which evaluates twice"
        )
    return None


def check_weights(kind: ConditionType | None, weights: Any) -> None:
    """Raise an InputError if a network is told weights of guidance that it has not learned."""
    if kind is None or kind.max_guidance is None or isinstance(weights, Tracer):
        return
    for weight in np.ravel(np.asarray(weights)).tolist():
        if not 1 <= weight <= kind.max_guidance:
            raise InputError(
                f"this network learned guidance from 1 to {kind.max_guidance:g}; got {weight:g}"
            )


def check_guidance(kind: ConditionType | None, guidance: Any) -> None:
    """Raise an InputError if guidance asks for what a network has not learned."""
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
    if number != 0:
        check_weights(kind, guidance)
