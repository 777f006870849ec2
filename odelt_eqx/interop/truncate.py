"""Cut a network off at one of its depths."""

import dataclasses
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError
from odelt_eqx.inputs import check_depth
from odelt_eqx.nn import DiT, VectorNet
from odelt_eqx.nn.groups import with_config

AnyNetwork = TypeVar("AnyNetwork", bound=DiT | VectorNet)


def truncate(model: AnyNetwork, depth: int) -> AnyNetwork:
    """Return a smaller network that holds only the blocks which `model` runs at `depth`.

    Its depths are those of `model` up to `depth`, each counted without the blocks past its last
    full group: depth 12 in groups of 8 becomes depth 8. Its output is the same, bit-for-bit. A
    projector is left out.

    Raises:
        InputError: the network is not one of this package, or does not have that depth.

    Example:
        >>> small = odelt.truncate(model, 2)
        >>> ours, theirs = (odelt.sample(m, noise, labels, depth=2) for m in (small, model))
        >>> bool((ours == theirs).all())
        True
    """
    if not isinstance(model, DiT | VectorNet):
        raise InputError(f"a DiT or a VectorNet can be truncated; got a {type(model).__name__}")
    if np.ndim(depth) or isinstance(depth, str):
        raise InputError(f"depth must be one number of blocks; got {depth!r}")
    depth = check_depth(depth, model.depths)
    config, group = model.config, model.config.depth_group
    old = [d for d in model.depths if d <= depth]
    new = [d // group * group for d in old]
    shorter = eqx.tree_at(lambda m: m.groups, model, model.groups[: depth // group])
    if model.length_embedding is not None:
        table = model.length_embedding.weight
        rows = table[: new[-1] + 1]
        if config.length_embedding == "depth":
            rows = jnp.zeros_like(rows).at[jnp.array(new)].set(table[jnp.array(old)])
        shorter = eqx.tree_at(lambda m: m.length_embedding.weight, shorter, rows)
    if model.projector is not None:
        shorter = eqx.tree_at(lambda m: m.projector, shorter, None)
    changes = {"depth": new[-1], "depth_min": new[0], "projector": False}
    return with_config(shorter, dataclasses.replace(config, **changes))
