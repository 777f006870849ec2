"""Guidance: velocities of one network, by its condition and by its depth, put together."""

from functools import partial
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from odelt_eqx.condition import Condition, Guidance, check_guidance, is_told_guidance
from odelt_eqx.inputs import Depth
from odelt_eqx.network import Network
from odelt_eqx.ode.length import LengthStats
from odelt_eqx.ode.plan import Plan


def guided_velocity(
    network: Network,
    t: Float[Array, "*#batch"],
    x: Float[Array, "batch *shape"],
    step_index: int | Real[Array, "*#batch"],
    condition: Condition | None,
    guidance: float | Float[Array, "*#batch"] | Guidance,
    depth: Depth = "full",
    *,
    depth_guidance: float | Float[Array, "*#batch"] = 0.0,
    guide_depth: int | None = None,
    length: Plan | None = None,
    tolerance: float | Float[Array, ""] | None = None,
) -> tuple[Float[Array, "batch *shape"], LengthStats]:
    r"""Guidance by a condition and by depth.

    With $v_l$ the class-guided velocity at depth $l$, see `class_guided_velocity`, and the guide at
    depth $l < L$, this is $v_L + w (v_L - v_l)$ (autoguidance, arXiv 2406.02507; within one
    network, 2512.24176). One integration gives both on an `anytime` network, unless examples have
    depths of their own; elsewhere the guide is a second, shallower pass.

    Returns the velocity, and the sum of what all evaluations took; the other arguments are those
    of `Network.evaluate`.

    Args:
        guidance: weight of the guidance by the condition, one for all or one per example. For a
            network that is told guidance also that and the interval.
        depth_guidance: `w`, one for all or one per example. The Python number 0 runs no guide.
            Examples that are no deeper than the guide are not guided.
        guide_depth: `l`; None for the smallest depth.

    Raises:
        InputError: the network has not learned one of the conditions that this asks for.
    """
    one = partial(class_guided_velocity, network, t, x, step_index, condition, guidance)
    if isinstance(depth_guidance, int | float) and depth_guidance == 0:
        return one(depth, length=length, tolerance=tolerance)
    guide = network.depths[0] if guide_depth is None else guide_depth
    depth = network.depth if isinstance(depth, str) and depth == "full" else depth
    if gives_guide(depth, network):
        depths = (guide, depth)
        if tolerance is not None:
            depths = tuple(d for d in network.depths if d <= depth)
        velocities, stats = one(depths, length=length, tolerance=tolerance)
        deep, shallow = velocities[-1], velocities[depths.index(guide)]
    else:
        deep, stats = one(depth, length=length, tolerance=tolerance)
        shallow, more = one(guide, length=length)
        stats = jax.tree.map(jnp.add, stats, more)
    weight = jnp.asarray(depth_guidance)
    if not isinstance(depth, int | str):
        weight = jnp.where(jnp.asarray(depth) > guide, weight, 0)
    return deep + _per_example(weight, x) * (deep - shallow), stats


def gives_guide(depth: Depth, network: Network) -> TypeGuard[int]:
    """Whether the velocity at a smaller depth comes with that at `depth`, for nothing."""
    return network.anytime and isinstance(depth, int)


def class_guided_velocity(
    network: Network,
    t: Float[Array, "*#batch"],
    x: Float[Array, "batch *shape"],
    step_index: int | Real[Array, "*#batch"],
    condition: Condition | None,
    guidance: float | Float[Array, "*#batch"] | Guidance,
    depth: Depth | tuple[int, ...] = "full",
    **options: Any,
) -> tuple[Float[Array, "*batch_shape"], LengthStats]:
    r"""Classifier-free guidance, $v = v_\emptyset + w (v_y - v_\emptyset)$ (arXiv 2207.12598).

    Returns what `Network.evaluate` does, whose arguments the others are, with the sum of what both
    halves took.

    Args:
        guidance: `w`, one for all or one per example. The Python numbers 1 and 0 evaluate the
            condition alone and the null condition alone; any other number, and every array,
            evaluates both in one batch, or the condition alone where the network is told.
        **options: `length` and `tolerance`.

    Raises:
        InputError: the network has not learned one of the conditions that this asks for.
    """
    one = partial(network.evaluate, t, x, step_index, depth=depth, **options)
    if isinstance(guidance, Guidance):
        return one(condition, guidance=guidance)
    check_guidance(network.condition_type, guidance)
    null, number = network.null(len(x)), guidance if isinstance(guidance, int | float) else None
    if condition is None or null is None or number == 1:
        return one(condition)
    if number == 0:
        return one(null)
    if is_told_guidance(network.condition_type):
        return one(condition, guidance=Guidance(guidance))
    both, states = jnp.concatenate([condition, null]), jnp.concatenate([x, x])
    depth = depth if isinstance(depth, str | tuple) else _twice(depth)
    velocity, stats = network.evaluate(
        _twice(t), states, _twice(step_index), both, depth, **options
    )
    batch_axis = int(isinstance(depth, tuple))
    conditional, unconditional = jnp.split(velocity, 2, axis=batch_axis)
    stats = jax.tree.map(lambda s: sum(jnp.split(s, 2)), stats)
    weight = _per_example(guidance, x)
    return unconditional + weight * (conditional - unconditional), stats


def _twice(value: Any) -> Any:
    """Return one value for all as it is, and one per example for both halves of a batch.

    Depths of NumPy stay known while tracing.
    """
    if np.shape(value) in ((), (1,)):
        return value
    join = np.concatenate if isinstance(value, np.ndarray) else jnp.concatenate
    return join([value, value])


def _per_example(weight: float | Float[Array, "*#batch"], x: Float[Array, "batch *shape"]) -> Any:
    """Return a weight for all as it is, and one per example in a shape that multiplies `x`."""
    return jnp.reshape(weight, (-1, *(1,) * (x.ndim - 1))) if jnp.ndim(weight) else weight
