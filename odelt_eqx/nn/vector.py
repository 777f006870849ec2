"""A network of vectors whose depth is an ODE: an MLP for points, features, low dimensions."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.inputs import Inputs
from odelt_eqx.nn.config import ConfiguredNetwork, NetworkConfig
from odelt_eqx.nn.embeddings import ConditionEmbedding
from odelt_eqx.nn.groups import (
    Projector,
    draw_groups,
    draw_length_embedding,
    draw_projector,
    integrate_groups,
)
from odelt_eqx.nn.layers import FinalLayer, Mlp, affine, layer_norm, linear, modulate
from odelt_eqx.ode import LengthStats, ODEBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorNetConfig(NetworkConfig):
    """Shape of a `VectorNet`.

    Args:
        size: values of a vector.

    Raises:
        InputError: the numbers do not fit together.

    Example:
        >>> config = odelt.VectorNetConfig(
        ...     size=2, hidden_size=8, depth=3, depth_min=1, depth_group=1
        ... )
        >>> config.shape, config.depths
        ((2,), (1, 2, 3))
    """

    size: int

    @property
    def shape(self) -> tuple[int]:
        """Shape of one vector, (size,)."""
        return (self.size,)

    def build(self, *, key: Key[Array, ""]) -> "VectorNet":
        """Return a `VectorNet` of this shape with fresh weights."""
        return VectorNet(self, key=key)


class MlpBlock(eqx.Module):
    """An MLP, shifted, scaled and gated by the condition: a DiT block without attention."""

    modulation: eqx.nn.Linear
    mlp: Mlp
    dtype: str = eqx.field(static=True)

    def __init__(self, config: VectorNetConfig, *, key: Key[Array, ""]):
        """Draw the weights."""
        modulation_key, mlp_key = jax.random.split(key)
        self.modulation = linear(config.hidden_size, 3 * config.hidden_size, modulation_key)
        self.mlp = Mlp(config.hidden_size, config.mlp_ratio, config.dropout, key=mlp_key)
        self.dtype = config.dtype

    def __call__(
        self,
        h: Float[Array, " width"],
        condition: Float[Array, " width"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, " width"]:
        """Transform the hidden state of one example under its condition."""
        parts = affine(self.modulation, jax.nn.silu(condition.astype(self.dtype)))
        shift, scale, gate = jnp.split(parts, 3)
        x = modulate(layer_norm(h).astype(self.dtype), shift, scale)
        return h + gate * self.mlp(x, key)


class VectorNet(ConfiguredNetwork):
    """A velocity field over vectors: MLP blocks whose depth is an ODE.

    Example:
        >>> config = odelt.VectorNetConfig(
        ...     size=2, hidden_size=8, depth=2, depth_min=1, depth_group=1
        ... )
        >>> network = odelt.VectorNet(config, key=jax.random.key(0))
        >>> odelt.sample(network, jax.random.normal(jax.random.key(1), (5, 2)), depth=1).shape
        (5, 2)
    """

    embedding: eqx.nn.Linear
    condition_embedding: ConditionEmbedding
    length_embedding: eqx.nn.Embedding | None
    groups: tuple[ODEBlock[MlpBlock], ...]
    final: FinalLayer
    projector: Projector | None
    config: VectorNetConfig = eqx.field(static=True)

    def __init__(self, config: VectorNetConfig, *, key: Key[Array, ""]):
        """Draw the weights of the network that `config` describes."""
        inputs, time, step, label, length, blocks, final = jax.random.split(key, 7)
        width, kind = config.hidden_size, config.condition_type
        draw_block = lambda key: MlpBlock(config, key=key)
        self.embedding = linear(config.size, width, inputs)
        self.condition_embedding = ConditionEmbedding(width, kind, keys=(time, step, label))
        self.length_embedding = draw_length_embedding(config, length)
        self.groups = draw_groups(config, draw_block, blocks)
        self.final = FinalLayer(width, config.size, key=final)
        # Those above are keys 0 to 6.
        self.projector = draw_projector(config, jax.random.fold_in(key, 7))
        self.config = config

    def velocity(self, inputs: Inputs) -> tuple[Float[Array, "*batch_shape"], LengthStats]:
        """Return the velocity and what its length ODE took, see `Network`."""
        return integrate_groups(
            self, affine(self.embedding, inputs.x), inputs, jax.vmap(self.final)
        )
