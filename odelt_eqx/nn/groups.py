"""Groups of blocks: how they are drawn, laid out and integrated in every network here."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.inputs import Inputs
from odelt_eqx.nn.config import NetworkConfig
from odelt_eqx.nn.layers import Mlp, embedding, layer_norm
from odelt_eqx.ode import LengthStats, ODEBlock, Stack, integrate_length
from odelt_eqx.ode.length import LengthDepth

AnyNetwork = TypeVar("AnyNetwork")
"""A network of this package: it has `config`, `groups`, and embeddings of condition and length."""


def draw_groups(
    config: NetworkConfig, draw_block: Callable[[Key[Array, ""]], Any], key: Key[Array, ""]
) -> tuple[ODEBlock, ...]:
    """Return `config.depth` fresh blocks in groups; the last group may not be full."""
    blocks = Stack(eqx.filter_vmap(draw_block)(jax.random.split(key, config.depth)))
    stacks = blocks.split(config.depth_group)
    groups = (stack if config.stacked else tuple(stack) for stack in stacks)
    return tuple(ODEBlock(group, config.wiring) for group in groups)


def draw_length_embedding(config: NetworkConfig, key: Key[Array, ""]) -> eqx.nn.Embedding | None:
    """Return a fresh row for every depth, if the network is told one."""
    if config.length_embedding == "none":
        return None
    return embedding(config.depth + 1, config.hidden_size, key)


class Projector(eqx.Module):
    """Predicts the hidden state at a deeper edge: a norm and an MLP, which only training uses."""

    mlp: Mlp
    dtype: str = eqx.field(static=True)

    def __init__(self, config: NetworkConfig, *, key: Key[Array, ""]):
        """Draw an MLP as wide as those of the blocks."""
        self.mlp = Mlp(config.hidden_size, config.mlp_ratio, 0.0, key=key)
        self.dtype = config.dtype

    def __call__(self, h: Float[Array, "batch *tokens width"]) -> Array:
        """Return the prediction, (batch, *tokens, width), float32."""
        return self.mlp(layer_norm(h).astype(self.dtype), None).astype(jnp.float32)


def draw_projector(config: NetworkConfig, key: Key[Array, ""]) -> Projector | None:
    """Return a fresh head, if the network has one."""
    return Projector(config, key=key) if config.projector else None


def integrate_groups(
    network: Any,
    h: Float[Array, "batch *tokens width"],
    inputs: Inputs,
    read: Callable[[Array, Array], Array],
    block_condition: Callable[[Array], Array] = lambda c: c,
) -> tuple[Float[Array, "*batch_shape"], LengthStats]:
    """Integrate the hidden state over a network's groups, under its condition.

    Blocks past the last full group never reach the output of the length ODE and are left out.

    Args:
        read: maps `u` and what modulates the final layer, (batch, width), to velocities.
        block_condition: maps that condition to what blocks are given, (batch, features): once for
            all of them, or once for each group if it is told the depth of its edge.
    """
    config, depth, groups = network.config, inputs.depth, network.groups
    step_index = jnp.zeros_like(inputs.step_index) if config.ignore_step else inputs.step_index
    given = (inputs.t, step_index, inputs.condition, inputs.guidance)
    c = network.condition_embedding(*given)
    told = config.length_embedding
    if isinstance(depth, str):
        told = "none"
    else:
        groups = groups[: config.depth // config.depth_group]

    def tell(depth: Any) -> Array:
        return c + jnp.broadcast_to(network.length_embedding.weight[jnp.asarray(depth)], c.shape)

    def edge(depth: Any) -> Any:
        if depth is None or isinstance(depth, str):
            return depth
        if isinstance(depth, tuple):
            return tuple(map(edge, depth))
        return depth // config.depth_group * config.depth_group

    def read_edge(u: Array, depth: LengthDepth) -> Array:
        return read(u, tell(depth) if told == "edge" else c)

    if told == "edge":
        edges = range(config.depth_group, config.depth + 1, config.depth_group)
        condition = tuple(block_condition(tell(edge)) for edge in edges)
    else:
        condition = block_condition(tell(depth) if told == "depth" else c)
    return integrate_length(
        groups,
        h,
        condition,
        edge(depth),
        inputs.length,
        read_edge,
        keys=inputs.keys if config.dropout > 0 else None,
        tolerance=inputs.tolerance,
        hidden=edge(inputs.hidden),
    )


def stacked(network: AnyNetwork) -> AnyNetwork:
    """Return the same network with the weights of a group's blocks in shared arrays."""
    return _lay_out(network, True)


def unstacked(network: AnyNetwork) -> AnyNetwork:
    """Return the same network with arrays for every block, the layout that samples fast.

    `stacked` and this one copy the weights of the blocks, unless they are already laid out so.
    """
    return _lay_out(network, False)


def _lay_out(network: Any, as_stack: bool) -> Any:
    if network.config.stacked == as_stack:
        return network
    kind = Stack.of if as_stack else tuple
    groups = tuple(ODEBlock(kind(group.blocks), group.wiring) for group in network.groups)
    changed = eqx.tree_at(lambda n: n.groups, network, groups)
    return with_config(changed, dataclasses.replace(network.config, stacked=as_stack))


def with_config(network: AnyNetwork, config: NetworkConfig) -> AnyNetwork:
    """Return a network of this config with the arrays of `network`, in their order."""
    structure = jax.tree.structure(network_template(config))
    return jax.tree.unflatten(structure, jax.tree.leaves(network))


def network_template(config: NetworkConfig) -> Any:
    """Return the network of a config with shapes in place of arrays."""
    return eqx.filter_eval_shape(config.build, key=jax.random.key(0))
