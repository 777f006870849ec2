"""The DiT block (arXiv 2212.09748)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.nn.layers import Mlp, affine, layer_norm, linear, modulate


class Attention(eqx.Module):
    """Self-attention whose logits are scaled by `1 / d_head`."""

    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    num_heads: int = eqx.field(static=True)

    def __init__(self, width: int, num_heads: int, *, key: Key[Array, ""]):
        """Draw query, key and value as three square layers would be: variance 1 / width."""
        qkv_key, out_key = jax.random.split(key)
        self.qkv = linear(width, 3 * width, qkv_key, jax.nn.initializers.lecun_uniform())
        self.out = linear(width, width, out_key)
        self.num_heads = num_heads

    def __call__(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        """Mix the tokens of one example."""
        tokens, width = x.shape
        heads = affine(self.qkv, x).reshape(tokens, 3, self.num_heads, -1)
        q, k, v = heads.transpose(1, 2, 0, 3)  # (heads, tokens, d_head) each: plain matrix products
        scaled = q * (self.num_heads / width)
        logits = jnp.matmul(scaled, k.mT, preferred_element_type=jnp.float32)
        mixed = jax.nn.softmax(logits).astype(x.dtype) @ v
        return affine(self.out, mixed.swapaxes(0, 1).reshape(tokens, width))


class DiTBlock(eqx.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN).

    Tokens enter and leave in float32, the state of the length ODE; everything inside runs in
    `dtype`. The modulation starts from Xavier weights as the reference's does, not from DiT's
    zeros.
    """

    modulation: eqx.nn.Linear
    attention: Attention
    mlp: Mlp
    dtype: str = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: int,
        dropout: float,
        dtype: str,
        *,
        key: Key[Array, ""],
    ):
        """Draw the weights."""
        modulation_key, attention_key, mlp_key = jax.random.split(key, 3)
        self.modulation = linear(width, 6 * width, modulation_key)
        self.attention = Attention(width, num_heads, key=attention_key)
        self.mlp = Mlp(width, mlp_ratio, dropout, key=mlp_key)
        self.dtype = dtype

    @eqx.filter_jit
    def __call__(
        self,
        tokens: Float[Array, "tokens width"],
        condition: Float[Array, " width"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "tokens width"]:
        """Transform the tokens of one example, (tokens, width), under its condition, (width,)."""
        parts = affine(self.modulation, jax.nn.silu(condition.astype(self.dtype)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(parts[None], 6, axis=1)
        x = modulate(layer_norm(tokens).astype(self.dtype), shift_a, scale_a)
        tokens = tokens + gate_a * self.attention(x)
        x = modulate(layer_norm(tokens).astype(self.dtype), shift_m, scale_m)
        return tokens + gate_m * self.mlp(x, key)
