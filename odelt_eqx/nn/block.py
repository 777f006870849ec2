"""The DiT block (arXiv 2212.09748), and what may be chosen of it."""

import abc
import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError, reason
from odelt_eqx.nn.config import NetworkConfig
from odelt_eqx.nn.embeddings import rotate
from odelt_eqx.nn.layers import Mlp, MlpKind, Norm, NormKind, affine, linear, modulate

Modulation = Literal["block", "shared"]
LogitScale = Literal["inverse", "inverse-sqrt"]
AttentionProgram = Literal["auto", "xla", "cudnn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig(NetworkConfig):
    """Shape of a network of `DiTBlock`s: abstract. The defaults are the published block.

    Args:
        num_heads: attention heads.
        qk_norm: queries and keys pass an RMSNorm with a learned scale, one for each value of a
            head (arXiv 2302.05442), so that logits cannot grow with the weights. Logits then begin
            in [-1, 1] with the published `logit_scale`; choose "inverse-sqrt" beside it.
        norm: before attention, MLP and final layer: the published "layer" (LayerNorm without scale
            and bias), "rms" (RMSNorm, arXiv 1910.07467), or "scaled-rms", with a learned scale.
        rope: queries and keys are rotated by the row and the column of their patch, see `rotate`.
            The table of sines and cosines is still added to the tokens, as in LightningDiT (arXiv
            2501.01423) and JiT (arXiv 2511.13720): rotations tell where patches are to each other,
            and only the table where each is in the image. It has no weights and costs nothing.
        mlp: "gelu" (published) or "swiglu" (arXiv 2002.05202), as many weights to a few percent.
        modulation: each "block" has a layer of its own that maps the condition to shifts, scales
            and gates (published), or one is "shared", to whose output each block adds a learned
            offset (adaLN-single, arXiv 2310.00426): a third of the weights less.
        logit_scale: what the products of queries and keys are multiplied by, the "inverse" of the
            head dimension (published) or that of its square root, "inverse-sqrt" (usual).
        attention: the program that computes it: "xla" keeps the logits; "cudnn" never writes them
            to memory, in bfloat16 on NVIDIA GPUs; "auto" is "cudnn" where a program is compiled
            for such a GPU and JAX has cuDNN, for heads that it takes. It has no forward derivative.

    Raises:
        InputError: the numbers do not fit together.
    """

    num_heads: int
    qk_norm: bool = False
    norm: NormKind = "layer"
    rope: bool = False
    mlp: MlpKind = "gelu"
    modulation: Modulation = "block"
    logit_scale: LogitScale = "inverse"
    attention: AttentionProgram = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise InputError(
                f"hidden_size must be a multiple of num_heads {self.num_heads} and of 4; "
                f"got {self.hidden_size}"
            )
        if self.rope and self.head_size % 4:
            raise InputError(
                "rope needs a head dimension (hidden_size / num_heads) that is a multiple of 4; "
                f"got {self.head_size}"
            )
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise InputError(f"attention cudnn needs dtype bfloat16; got {self.dtype}")

    @property
    @abc.abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""

    @property
    def head_size(self) -> int:
        """Values of a query, key or value of one head."""
        return self.hidden_size // self.num_heads

    def check_published(self, owner: str, *also: str) -> None:
        """Raise an InputError if its blocks or its condition are not as the published ones.

        Args:
            owner: whose networks have the published block.
            also: fields of this config that may have other values all the same.
        """
        for field in dataclasses.fields(BlockConfig):
            value = getattr(self, field.name)
            if field.name in PUBLISHED - {*also} and value != field.default:
                known = f"{field.name} {field.default}"
                raise InputError(f"blocks of {owner} have {known}; got {value}")
        if self.condition_size is not None:
            raise InputError(
                f"networks of {owner} have classes as their condition: give num_classes in place "
                "of condition_size"
            )
        if self.max_guidance is not None:
            raise InputError(f"networks of {owner} are not told the guidance: leave max_guidance")


PUBLISHED = {"qk_norm", "norm", "rope", "mlp", "modulation", "logit_scale"}
"""The fields of a `BlockConfig` whose defaults are the published block."""


class Attention(eqx.Module):
    """Self-attention; its choices are those of a `BlockConfig`."""

    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    query_norm: Norm | None
    key_norm: Norm | None
    num_heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    grid: tuple[int, int] | None = eqx.field(static=True)
    program: AttentionProgram = eqx.field(static=True)

    def __init__(self, config: BlockConfig, *, key: Key[Array, ""]):
        """Draw query, key and value as three square layers would be: variance 1 / width."""
        qkv_key, out_key = jax.random.split(key)
        width, size = config.hidden_size, config.head_size
        self.qkv = linear(width, 3 * width, qkv_key, jax.nn.initializers.lecun_uniform())
        self.out = linear(width, width, out_key)
        self.query_norm = Norm("scaled-rms", size) if config.qk_norm else None
        self.key_norm = Norm("scaled-rms", size) if config.qk_norm else None
        self.num_heads = config.num_heads
        self.scale = 1 / size if config.logit_scale == "inverse" else size**-0.5
        self.grid = config.grid if config.rope else None
        self.program = config.attention

    def __call__(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        """Mix the tokens of one example."""
        tokens, width = x.shape
        parts = jnp.split(affine(self.qkv, x), 3, axis=1)
        # (heads, tokens, d_head) each: plain matrix products
        q, k, v = (part.reshape(tokens, self.num_heads, -1).swapaxes(0, 1) for part in parts)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.grid is not None:
            q, k = rotate(q, self.grid), rotate(k, self.grid)
        mixed = attend(q.astype(x.dtype), k.astype(x.dtype), v, self.scale, self.program)
        return affine(self.out, mixed.swapaxes(0, 1).reshape(tokens, width))


Heads = Float[Array, "heads tokens size"]


def attend(q: Heads, k: Heads, v: Heads, scale: float, program: AttentionProgram) -> Heads:
    """Return `softmax(scale q k^T) v`, by the program that is asked for, see `BlockConfig`.

    The softmax is float32. On CPU the explicit form is faster than `jax.nn.dot_product_attention`.

    Raises:
        InputError: "cudnn" is asked for, and JAX has none or it does not take these arrays.
    """

    def explicit(q: Heads, k: Heads, v: Heads) -> Heads:
        logits = jnp.matmul(q * scale, k.mT, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits).astype(v.dtype) @ v

    def fused(q: Heads, k: Heads, v: Heads) -> Heads:
        q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))
        mixed = jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
        return mixed.swapaxes(0, 1)

    if program == "xla":
        return explicit(q, k, v)
    try:
        jax.eval_shape(fused, q, k, v)
    except RuntimeError as error:
        if program == "cudnn":
            raise InputError(f"attention cudnn: {reason(error)} Give auto or xla.") from None
        return explicit(q, k, v)
    if program == "cudnn":
        return fused(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cuda=fused, default=explicit)


class DiTBlock(eqx.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN).

    Tokens enter and leave in float32, the state of the length ODE; everything inside runs in
    `dtype`. The modulation starts from Xavier weights as the reference's does, not from DiT's
    zeros. Where it is shared, the condition is what all blocks share of it, and the offsets start
    from zero: all blocks are modulated alike.
    """

    modulation: eqx.nn.Linear | None
    offset: Float[Array, " parts"] | None
    attention: Attention
    mlp: Mlp
    attention_norm: Norm
    mlp_norm: Norm
    dtype: str = eqx.field(static=True)

    def __init__(self, config: BlockConfig, *, key: Key[Array, ""]):
        """Draw the weights."""
        modulation_key, attention_key, mlp_key = jax.random.split(key, 3)
        width, shared = config.hidden_size, config.modulation == "shared"
        self.modulation = None if shared else linear(width, 6 * width, modulation_key)
        self.offset = jnp.zeros(6 * width, jnp.float32) if shared else None
        self.attention = Attention(config, key=attention_key)
        self.mlp = Mlp(width, config.mlp_ratio, config.dropout, config.mlp, key=mlp_key)
        self.attention_norm, self.mlp_norm = (Norm(config.norm, width) for _ in range(2))
        self.dtype = config.dtype

    @eqx.filter_jit
    def __call__(
        self,
        tokens: Float[Array, "tokens width"],
        condition: Float[Array, " features"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "tokens width"]:
        """Transform the tokens of one example, (tokens, width), under its condition.

        Args:
            condition: (width,), or (6 * width,) where the modulation is shared.
        """
        parts = condition.astype(self.dtype)
        if self.modulation is not None:
            parts = affine(self.modulation, jax.nn.silu(parts))
        elif self.offset is not None:
            parts = parts + self.offset.astype(self.dtype)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(parts[None], 6, axis=1)
        x = modulate(self.attention_norm(tokens).astype(self.dtype), shift_a, scale_a)
        tokens = tokens + gate_a * self.attention(x)
        x = modulate(self.mlp_norm(tokens).astype(self.dtype), shift_m, scale_m)
        return tokens + gate_m * self.mlp(x, key)
