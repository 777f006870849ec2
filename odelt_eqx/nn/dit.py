"""The diffusion transformer whose depth is an ODE."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError
from odelt_eqx.images import ImageSize, height_width
from odelt_eqx.inputs import Inputs
from odelt_eqx.nn.block import BlockConfig, DiTBlock
from odelt_eqx.nn.config import MOST_VALUES, ConfiguredNetwork
from odelt_eqx.nn.embeddings import ConditionEmbedding, patchify, position_table, unpatchify
from odelt_eqx.nn.groups import (
    Projector,
    draw_groups,
    draw_length_embedding,
    draw_projector,
    integrate_groups,
)
from odelt_eqx.nn.layers import FinalLayer, affine, linear
from odelt_eqx.ode import LengthStats, ODEBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(BlockConfig):
    """Shape of a `DiT`; its blocks are those of a `BlockConfig`.

    Args:
        image_size: (height, width) of the input, in pixels or latent cells, or one number for both.
        channels: channels of the input.
        patch_size: side of the square patch that becomes a token.

    Raises:
        InputError: the numbers do not fit together.

    Example:
        >>> config = odelt.DiTConfig(
        ...     image_size=(8, 16), channels=3, patch_size=4, hidden_size=16, num_heads=2,
        ...     depth=6, depth_min=2, depth_group=2,
        ... )
        >>> config.shape, config.depths
        ((8, 16, 3), (2, 4, 6))
    """

    image_size: ImageSize
    channels: int
    patch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.shape) < 1 or any(side % self.patch_size for side in self.shape[:2]):
            raise InputError(
                f"image_size must be a multiple of patch_size {self.patch_size}; "
                f"got {self.image_size}"
            )
        values = math.prod(self.shape), math.prod(self.grid) * self.hidden_size
        if max(values) > MOST_VALUES:
            raise InputError(
                f"image_size {self.image_size} makes {max(values):,} values, more than "
                f"{MOST_VALUES:,}, of an image or its hidden state"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (height, width, channels)."""
        return (*height_width(self.image_size), self.channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.shape
        return height // self.patch_size, width // self.patch_size

    def build(self, *, key: Key[Array, ""]) -> "DiT":
        """Return a `DiT` of this shape with fresh weights."""
        return DiT(self, key=key)


class DiT(ConfiguredNetwork):
    """A velocity field over images: a transformer that integrates its own depth.

    Source: DiT, arXiv 2212.09748, rewired as in ODE_t(ODE_l), arXiv 2506.21714.
    Differs from the reference: blocks past the last full group are not run (they never reach the
    output), and its 256-entry table of log-variances, which nothing reads, does not exist.

    Example:
        >>> config = odelt.DiTConfig(
        ...     image_size=8, channels=1, patch_size=4, hidden_size=16, num_heads=2,
        ...     depth=4, depth_min=2, depth_group=2, num_classes=10,
        ... )
        >>> network = odelt.DiT(config, key=jax.random.key(0))
        >>> network(0.5, noise, network.flow_index, labels, depth=2).shape
        (10, 8, 8, 1)
    """

    patch_embedding: eqx.nn.Linear
    condition_embedding: ConditionEmbedding
    length_embedding: eqx.nn.Embedding | None
    modulation: eqx.nn.Linear | None
    groups: tuple[ODEBlock[DiTBlock], ...]
    final: FinalLayer
    projector: Projector | None
    config: DiTConfig = eqx.field(static=True)

    def __init__(self, config: DiTConfig, *, key: Key[Array, ""]):
        """Draw the weights of the network that `config` describes, by one program."""
        parts = _draw(config, key)
        self.patch_embedding = parts["patch"]
        self.condition_embedding = parts["condition"]
        self.length_embedding = parts["length"]
        self.modulation = parts["modulation"]
        self.groups = parts["groups"]
        self.final = parts["final"]
        self.projector = parts["projector"]
        self.config = config

    @property
    def blocks(self) -> tuple[DiTBlock, ...]:
        """Every block, from the first to the last."""
        return tuple(block for group in self.groups for block in group.blocks)

    def velocity(self, inputs: Inputs) -> tuple[Float[Array, "*batch_shape"], LengthStats]:
        """Return the velocity and what its length ODE took, see `Network`."""
        config = self.config
        patches = jax.vmap(patchify, in_axes=(0, None))(inputs.x, config.patch_size)
        tokens = affine(self.patch_embedding, patches)
        tokens = tokens + position_table(config.grid, config.hidden_size)[None]
        join = lambda patches: unpatchify(patches, config.patch_size, config.grid)
        read = lambda u, c: jax.vmap(join)(jax.vmap(self.final)(u, c))
        return integrate_groups(self, tokens, inputs, read, self._block_condition)

    def _block_condition(self, c: Float[Array, "batch width"]) -> Float[Array, "batch features"]:
        """Return what every block is given: `c`, or what blocks share of its modulation."""
        if self.modulation is None:
            return c
        shared = affine(self.modulation, jax.nn.silu(c.astype(self.config.dtype)))
        return shared.astype(c.dtype)  # the gradient of all blocks is summed in float32


@eqx.filter_jit
def _draw(config: DiTConfig, key: Key[Array, ""]) -> dict[str, Any]:
    """Return the parts of a fresh `DiT`."""
    patch, time, step, label, length, blocks, final = jax.random.split(key, 7)
    width, values = config.hidden_size, config.patch_size**2 * config.channels
    draw_block = lambda key: DiTBlock(config, key=key)
    modulation = None
    if config.modulation == "shared":
        modulation = linear(width, 6 * width, jax.random.fold_in(key, 7))  # 0 to 6 are those above
    return {
        "patch": linear(values, width, patch),
        "condition": ConditionEmbedding(width, config.condition_type, keys=(time, step, label)),
        "length": draw_length_embedding(config, length),
        "modulation": modulation,
        "groups": draw_groups(config, draw_block, blocks),
        "final": FinalLayer(width, values, config.norm, key=final),
        "projector": draw_projector(config, jax.random.fold_in(key, 8)),
    }
