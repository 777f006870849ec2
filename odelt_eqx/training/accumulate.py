"""Gradient accumulation: a batch trained in parts, one after another inside one step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.network import Network
from odelt_eqx.objective import Targets
from odelt_eqx.parallel import deal

Mean = Callable[[Float[Array, " size"]], Float[Array, ""]]
Value = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]
Keys = Key[Array, "*#batch"] | None
Differentiated = Callable[[Network, Targets, Keys, Mean], tuple[Value, Any]]


def accumulate(
    differentiated: Differentiated,
    weights: Network,
    targets: Targets,
    key: Key[Array, ""] | None,
    parts: int,
) -> tuple[Value, Any]:
    """Return what `differentiated` does for the whole batch, from one part of it after another.

    The targets are those of the whole batch, since an objective assigns its kinds of example by
    position. That is also why `optax.MultiSteps`, which draws for each part separately and takes
    many calls per step, is not used.

    Args:
        differentiated: `(weights, targets, key, mean) -> ((minimised, losses), gradient)`, where
            all values are `mean` of one per example and the losses have the names of the targets'.
        weights: the parameters that the gradient is of.
        targets: of the whole batch.
        key: dropout key, or None for no dropout; examples drop the same values in any part.
    """
    batch_size, depth = len(targets.t), targets.depth
    depths = depth if isinstance(depth, np.ndarray) else np.zeros(batch_size, int)
    rows, counted = deal(depths, parts)
    arrays, rest = eqx.partition(targets, eqx.is_array)

    def add(total: Any, dealt: Any) -> tuple[Any, None]:
        arrays, counted, key = dealt
        mean = lambda errors: jnp.sum(jnp.where(counted, errors, 0)) / batch_size
        part = eqx.combine(arrays, rest)
        if isinstance(depth, np.ndarray):
            part = dataclasses.replace(part, depth=depth[rows[0]])
        result = differentiated(weights, part, key, mean)
        return jax.tree.map(jnp.add, total, result), None

    zero = jnp.zeros(())
    nothing = jax.tree.map(jnp.zeros_like, weights)
    keys = None if key is None else jax.random.split(key, batch_size)[rows]
    dealt = jax.tree.map(lambda leaf: leaf[rows], arrays)
    value = zero, dict.fromkeys(targets.losses, zero)
    return jax.lax.scan(add, (value, nothing), (dealt, counted, keys))[0]
