"""The diffusion transformer whose depth is an ODE."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, Real

from odelt_eqx.errors import InputError
from odelt_eqx.nn.block import DiTBlock, FinalLayer, plain
from odelt_eqx.nn.embeddings import ScalarEmbedding, image_of, patches, position_table
from odelt_eqx.nn.layers import affine, embedding, linear
from odelt_eqx.ode.blocks import Stack
from odelt_eqx.ode.cost import Cost
from odelt_eqx.ode.dealing import deal, places, take
from odelt_eqx.ode.length import LengthCost, ODEBlock, integrate_length
from odelt_eqx.ode.plan import Adaptive, FixedSteps, Plan
from odelt_eqx.sharding import devices_in_use, evenly


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Shape of a `DiT`.

    Args:
        image_size: height and width of the input, in pixels or latent cells.
        channels: channels of the input.
        patch_size: side of the square patch that becomes a token.
        hidden_size: width of a token.
        num_heads: attention heads.
        mlp_ratio: width of a block's MLP over `hidden_size`.
        depth: number of blocks.
        depth_min: the smallest depth that may be asked for.
        depth_group: blocks per unit of length.
        num_classes: classes; the label `num_classes` stands for "no class".
        dropout: dropout rate of the MLPs while training.
        denoise_timesteps: time steps of the finest shortcut; the step index
            `log2(denoise_timesteps)` asks for the flow field itself.
        ignore_step: the network never sees its step index, as in training without time shortcuts.
        dtype: what the blocks compute in; parameters and solver states are float32.
        length: how each group's unit of length is solved unless a call says otherwise. It is part
            of what the network is: the same weights under another solver are another function.
        stacked: a loop runs a group's blocks, whose weights lie in common arrays. Training compiles
            in a time that does not grow with the group, in less memory; sampling is slower.

    Raises:
        InputError: the numbers do not fit together.
    """

    image_size: int
    channels: int
    patch_size: int
    hidden_size: int
    num_heads: int
    mlp_ratio: int
    depth: int
    depth_min: int
    depth_group: int
    num_classes: int
    dropout: float = 0.0
    denoise_timesteps: int = 128
    ignore_step: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    length: FixedSteps | Adaptive = FixedSteps()
    stacked: bool = False

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type is int}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"{name} must be at least 1; got {value}")
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size must be a multiple of patch_size {self.patch_size}; "
                f"got {self.image_size}"
            )
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise InputError(
                f"hidden_size must be a multiple of num_heads {self.num_heads} and of 4; "
                f"got {self.hidden_size}"
            )
        if not self.depth_group <= self.depth_min <= self.depth:
            raise InputError(
                f"depth_min must lie between depth_group {self.depth_group} and depth "
                f"{self.depth}; got {self.depth_min}"
            )
        if (self.depth - self.depth_min) % self.depth_group:
            raise InputError(
                f"depth must be depth_min {self.depth_min} plus a multiple of depth_group "
                f"{self.depth_group}; got {self.depth}"
            )
        if self.denoise_timesteps & (self.denoise_timesteps - 1):
            raise InputError(
                f"denoise_timesteps must be a power of two; got {self.denoise_timesteps}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); got {self.dropout}")

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that may be asked for, in blocks, from the smallest to `depth`."""
        return tuple(range(self.depth_min, self.depth + 1, self.depth_group))

    @property
    def dead_blocks(self) -> int:
        """Blocks past the last full group, which the length ODE reaches at no depth."""
        return self.depth % self.depth_group

    @property
    def flow_index(self) -> int:
        """The step index of the flow field itself."""
        return self.denoise_timesteps.bit_length() - 1

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one input, (height, width, channels)."""
        return (self.image_size, self.image_size, self.channels)

    def check_depth(self, depth: int | np.ndarray | None) -> None:
        """Raise an InputError that lists the depths if `depth` is not among them."""
        wrong = [] if depth is None else sorted(set(np.ravel(depth).tolist()) - set(self.depths))
        if wrong:
            listed = ", ".join(map(str, self.depths))
            raise InputError(f"depth must be one of {listed} (in blocks); got {wrong[0]}")


class DiT(eqx.Module):
    """A velocity field over images: a transformer that integrates its own depth.

    Source: DiT, arXiv 2212.09748, rewired as in ODE_t(ODE_l), arXiv 2506.21714.
    Differs from the reference: blocks past the last full group are not run (they never reach the
    output), and its 256-entry table of log-variances, which nothing reads, does not exist.
    """

    patch_embedding: eqx.nn.Linear
    time_embedding: ScalarEmbedding
    step_embedding: ScalarEmbedding
    label_embedding: eqx.nn.Embedding
    length_embedding: eqx.nn.Embedding
    groups: tuple[ODEBlock[DiTBlock], ...]
    final: FinalLayer
    config: DiTConfig = eqx.field(static=True)

    def __init__(self, config: DiTConfig, *, key: Key[Array, ""]):
        """Draw the weights of the network that `config` describes."""
        self.config = config
        for name, part in _drawn(config, key).items():
            setattr(self, name, part)

    @property
    def blocks(self) -> tuple[DiTBlock, ...]:
        """Every block, from the first to the last."""
        return tuple(block for group in self.groups for block in group.blocks)

    def __call__(
        self,
        t: float | Float[Array, "*#batch"],
        x: Float[Array, "batch height width channels"],
        step_index: int | float | Real[Array, "*#batch"],
        labels: Int[Array, " batch"],
        *,
        depth: int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None,
        length: Plan | None = None,
        key: Key[Array, ""] | None = None,
        exit_tolerance: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Return the velocity dx/dt.

        Args:
            t: time, 0 noise and 1 data, one for all or one per example.
            x: states, (batch, height, width, channels).
            step_index: the velocity is for a step of `2 ** -step_index`; the config's `flow_index`
                asks for the flow field, a fraction for a step between. One for all or one per
                example.
            labels: classes, one per example; the config's `null_label` for none.
            depth: blocks to run, one of the config's `depths`. An int: for all. A NumPy array, one
                per example and known while tracing: each example leaves at its own depth. A JAX
                array, one per example: every group runs, masked. None: the plain DiT, every block
                in turn and no length embedding.
            length: how each group's unit of length is solved; None as the config says.
            key: dropout key, or None for no dropout.
            exit_tolerance: an example stops at the first edge where the last group changed `u` by
                less than this share of it; None runs to `depth`.

        Raises:
            InputError: the images' shape or the depth is not one of this network's.
            RuntimeError: a traced depth is not, or an adaptive `length` ran out of steps.
        """
        plan = self.config.length if length is None else length
        velocity, cost = self.with_cost(
            t,
            x,
            step_index,
            labels,
            depth=depth,
            length=plan,
            key=key,
            exit_tolerance=exit_tolerance,
        )
        if isinstance(plan, Adaptive):
            return eqx.error_if(velocity, cost.failures > 0, plan.failure("length"))
        return velocity

    def with_cost(
        self,
        t: float | Float[Array, "*#batch"],
        x: Float[Array, "batch height width channels"],
        step_index: int | float | Real[Array, "*#batch"],
        labels: Int[Array, " batch"],
        *,
        depth: int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None,
        length: Plan | None = None,
        key: Key[Array, ""] | None = None,
        exit_tolerance: float | Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch height width channels"], Cost]:
        """Return what a call returns, and what it took.

        A length solve that runs out of steps is counted among the failures, not raised: its example
        goes on from where it got to, and no other is touched.
        """
        config = self.config
        if x.shape[1:] != config.image_shape:
            raise InputError(
                f"images must have shape (batch, {config.image_size}, {config.image_size}, "
                f"{config.channels}); got {x.shape}"
            )
        batch = x.shape[0]
        depth = None if depth is None else self._checked(depth)
        scalar = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))
        step = scalar(0 if config.ignore_step else step_index)
        keys = None if key is None or depth is None else jax.random.split(key, batch)
        inputs, back = (scalar(t), x, step, labels, keys), np.arange(batch)
        if isinstance(depth, np.ndarray) and exit_tolerance is None:
            dealt, counts = deal(depth, devices_in_use())
            inputs, back = take(inputs, dealt), places(dealt, counts)
            depth = depth[dealt.ravel()]
        times, x, step, labels, keys = evenly(inputs)
        condition = jax.vmap(self.time_embedding)(times) + jax.vmap(self.step_embedding)(step)
        condition = condition + self.label_embedding.weight[labels]
        tokens = jax.vmap(patches, in_axes=(0, None))(x, config.patch_size)
        tokens = affine(self.patch_embedding, tokens)
        tokens = tokens + position_table(config.image_size // config.patch_size, config.hidden_size)
        if depth is None:
            tokens = plain(self.blocks, tokens, condition, key)
            spent = jnp.full(batch, float(config.depth))
            taken = LengthCost(spent, spent, jnp.zeros(batch))
        else:
            rows = self.length_embedding.weight[jnp.asarray(depth)]
            full = self.groups[: config.depth // config.depth_group]
            count = depth // config.depth_group
            plan = config.length if length is None else length
            tokens, taken = integrate_length(
                full, tokens, condition + rows, count, plan, keys, exit_tolerance
            )
        velocity = jax.vmap(self.final)(tokens, condition)
        images = jax.vmap(image_of, in_axes=(0, None))(velocity, config.patch_size)
        images, taken = take((images, taken), back)
        return images, Cost(jnp.ones(batch), taken.depth, taken.blocks, taken.failures)

    def _checked(self, depth: int | np.ndarray | Array) -> int | np.ndarray | Array:
        """Return `depth` if the network has it."""
        if isinstance(depth, Tracer):
            known = jnp.isin(depth, jnp.asarray(self.config.depths))
            return eqx.error_if(depth, ~known, f"depth must be one of {self.config.depths}")
        self.config.check_depth(np.asarray(depth))
        return int(depth) if np.ndim(depth) == 0 else depth


@eqx.filter_jit
def _drawn(config: DiTConfig, key: Key[Array, ""]) -> dict[str, eqx.Module | tuple[ODEBlock, ...]]:
    """Return the parts of a fresh `DiT` by name, drawn by one program."""
    patch, time, step, label, length, blocks, final = jax.random.split(key, 7)
    width, values = config.hidden_size, config.patch_size**2 * config.channels
    draw = lambda key: DiTBlock(
        width, config.num_heads, config.mlp_ratio, config.dropout, config.dtype, key=key
    )
    stack = Stack(eqx.filter_vmap(draw)(jax.random.split(blocks, config.depth)))
    parts = stack.parts(config.depth_group)
    return {
        "patch_embedding": linear(values, width, patch),
        "time_embedding": ScalarEmbedding(width, key=time),
        "step_embedding": ScalarEmbedding(width, key=step),
        "label_embedding": embedding(config.num_classes + 1, width, label),
        "length_embedding": embedding(config.depth + 1, width, length),
        "groups": tuple(ODEBlock(part if config.stacked else tuple(part)) for part in parts),
        "final": FinalLayer(width, values, key=final),
    }
