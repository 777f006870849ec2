"""A batch in parts, trained one after the other inside one step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.nn.dit import DiT
from odelt_eqx.objective.base import Targets
from odelt_eqx.ode.dealing import deal

Mean = Callable[[Float[Array, " size"]], Float[Array, ""]]
Differentiated = Callable[
    [DiT, Targets, Key[Array, ""] | None, Mean],
    tuple[tuple[Float[Array, ""], Float[Array, ""]], Any],
]


def accumulate(
    differentiated: Differentiated,
    model: DiT,
    targets: Targets,
    key: Key[Array, ""] | None,
    parts: int,
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], Any]:
    """Return what `differentiated` does for the whole batch, from one part of it after the other.

    The targets are those of the whole batch: an objective deals out its kinds of example by place.
    That is also why `optax.MultiSteps`, which would draw for each part on its own and take many
    calls to a step, is not used.

    Args:
        differentiated: `(model, targets, key, mean) -> ((loss, error), gradient)`, where both
            figures are `mean` of one per example.
        model: the network.
        targets: of the whole batch.
        key: dropout key, or None for no dropout.
        parts: how many parts.
    """
    batch_size, depth = len(targets.t), targets.depth
    known = not isinstance(depth, jax.Array)
    dealt, counts = deal(
        depth if isinstance(depth, np.ndarray) else np.zeros(batch_size, int), parts
    )
    part_depth = depth[dealt[0]] if isinstance(depth, np.ndarray) else depth
    targets = dataclasses.replace(targets, depth=None) if known else targets

    def add(total: Any, part: Any) -> tuple[Any, None]:
        targets, counted, key = part
        targets = dataclasses.replace(targets, depth=part_depth) if known else targets
        share = lambda errors: jnp.sum(jnp.where(counted, errors, 0)) / batch_size
        return jax.tree.map(jnp.add, total, differentiated(model, targets, key, share)), None

    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    keys = None if key is None else jax.random.split(key, parts)
    inputs = (jax.tree.map(lambda leaf: leaf[dealt], targets), counts, keys)
    zero = jnp.zeros(())
    return jax.lax.scan(add, ((zero, zero), nothing), inputs)[0]
