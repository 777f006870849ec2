"""One network in two layouts: arrays for every block, or for all blocks of a group at once."""

import dataclasses

import equinox as eqx
import jax

from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.ode.blocks import Stack
from odelt_eqx.ode.length import ODEBlock


def stacked(model: DiT) -> DiT:
    """Return the same network with the weights of a group's blocks in common arrays."""
    return _laid_out(model, True)


def unstacked(model: DiT) -> DiT:
    """Return the same network with arrays for every block, the layout that is fast to sample from.

    `stacked` and this one copy the weights of the blocks, unless they are laid out so already.
    """
    return _laid_out(model, False)


def _laid_out(model: DiT, as_stack: bool) -> DiT:
    if model.config.stacked == as_stack:
        return model
    kind = Stack.of if as_stack else tuple
    groups = tuple(ODEBlock(kind(group.blocks)) for group in model.groups)
    changed = eqx.tree_at(lambda m: m.groups, model, groups)
    return with_config(changed, dataclasses.replace(model.config, stacked=as_stack))


def with_config(model: DiT, config: DiTConfig) -> DiT:
    """Return a network of this config with the arrays of `model`, in their order."""
    template = eqx.filter_eval_shape(DiT, config, key=jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(model))
