"""What `integrate_length` can integrate: the groups, a depth, and its options."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Int

from odelt_eqx.errors import InputError


def check_rising(depths: tuple[int, ...]) -> None:
    """Raise an InputError unless there are depths and they rise."""
    if not depths or any(a >= b for a, b in itertools.pairwise(depths)):
        raise InputError(f"depths must rise; got {depths}")


def check_groups(groups: Sequence[Any], condition: Any) -> None:
    """Raise an InputError unless groups can be integrated, under this condition."""
    if not len(groups):
        raise InputError("groups must be at least one ODEBlock; got none")
    if len({group.wiring for group in groups}) > 1:
        raise InputError(f"groups must have one wiring; got {[group.wiring for group in groups]}")
    if isinstance(condition, tuple) and len(condition) != len(groups):
        raise InputError(
            f"a tuple of conditions must have one for each of {len(groups)} groups; got "
            f"{len(condition)}"
        )


def check_depth(depth: Any, ends: Int[np.ndarray, " groups"], batch_size: int) -> None:
    """Raise an InputError unless groups that end at `ends` give what is known of a depth."""
    if isinstance(depth, str):
        if depth != "plain":
            raise InputError(f'depth must be a number of blocks or "plain"; got {depth!r}')
        return
    if isinstance(depth, tuple):
        check_rising(depth)
    elif np.shape(depth) not in ((), (batch_size,)):
        raise InputError(
            f"depth must be a number or have shape ({batch_size},); got {np.shape(depth)}"
        )
    if isinstance(depth, Tracer):
        return
    if np.asarray(depth).dtype.kind not in "iuf":
        raise InputError(f'depth must be a number of blocks or "plain"; got {depth!r}')
    for blocks in np.ravel(np.asarray(depth)).tolist():
        if not ends[0] <= blocks <= ends[-1]:
            raise InputError(
                f"depth must lie between {ends[0]} and {ends[-1]} (in blocks), where the groups "
                f"end; got {blocks}"
            )


def check_options(
    depth: Any, ends: Int[np.ndarray, " groups"], tolerance: Any, hidden: int | None
) -> None:
    """Raise an InputError unless a tolerance and the depth of a hidden state can be used."""
    if (tolerance is not None or hidden is not None) and not isinstance(depth, tuple):
        name = "hidden" if tolerance is None else "a tolerance"
        raise InputError(f"{name} needs a tuple of depths; got {depth}")
    if tolerance is not None and not isinstance(tolerance, Tracer) and not tolerance > 0:
        raise InputError(f"a tolerance of the depth must be positive; got {tolerance}")
    if hidden is None:
        return
    if tolerance is not None:
        raise InputError("a hidden state is kept of a whole batch: leave out the tolerance")
    if not ends[0] <= hidden <= depth[-1]:
        raise InputError(f"hidden must lie between {ends[0]} and {depth[-1]}; got {hidden}")
