"""A network that ends where a depth ends."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp

from odelt_eqx.nn.dit import DiT
from odelt_eqx.nn.layout import with_config


def truncate(model: DiT, depth: int) -> DiT:
    """Return a network of its own that holds only the blocks which `model` runs at `depth`.

    Its depths are those of `model` up to `depth`, each counted without the blocks past its last
    full group: depth 12 in groups of 8 becomes depth 8. Its output is the same, bit for bit.

    Args:
        model: the network.
        depth: one of `model.config.depths`.

    Raises:
        InputError: `depth` is not one of the network's.
    """
    config = model.config
    config.check_depth(depth)
    group = config.depth_group
    old = [d for d in config.depths if d <= depth]
    new = [d // group * group for d in old]
    table = model.length_embedding.weight
    rows = (
        jnp.zeros((new[-1] + 1, config.hidden_size)).at[jnp.array(new)].set(table[jnp.array(old)])
    )
    shorter = eqx.tree_at(
        lambda m: (m.length_embedding.weight, m.groups),
        model,
        (rows, model.groups[: depth // group]),
    )
    return with_config(shorter, dataclasses.replace(config, depth=new[-1], depth_min=new[0]))
