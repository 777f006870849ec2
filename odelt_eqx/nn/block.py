"""The DiT block and the layer that turns tokens back into patches (arXiv 2212.09748)."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.nn.layers import affine, layer_norm, linear, modulate


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


class Mlp(eqx.Module):
    """Dense, tanh-GELU, dropout, dense, dropout."""

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    dropout: float = eqx.field(static=True)

    def __init__(self, width: int, ratio: int, dropout: float, *, key: Key[Array, ""]):
        """Make a layer `ratio` times as wide inside."""
        hidden_key, out_key = jax.random.split(key)
        self.hidden = linear(width, ratio * width, hidden_key)
        self.out = linear(ratio * width, width, out_key)
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "tokens width"], key: Key[Array, ""] | None
    ) -> Float[Array, "tokens width"]:
        """Apply the layer to every token; no key, no dropout."""
        dropout = eqx.nn.Dropout(self.dropout, inference=key is None)
        keys = (None, None) if key is None else jax.random.split(key)
        x = jax.nn.gelu(affine(self.hidden, x), approximate=True)
        return dropout(affine(self.out, dropout(x, key=keys[0])), key=keys[1])


class DiTBlock(eqx.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN).

    Tokens come and go in float32, the state of the length ODE; everything inside runs in `dtype`.
    The modulation starts from Xavier weights as the reference's does, not from DiT's zeros.
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
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(parts, 6)
        x = modulate(layer_norm(tokens).astype(self.dtype), shift_a, scale_a)
        tokens = tokens + gate_a * self.attention(x)
        x = modulate(layer_norm(tokens).astype(self.dtype), shift_m, scale_m)
        return tokens + gate_m * self.mlp(x, key)


def plain(
    blocks: Sequence[DiTBlock],
    tokens: Float[Array, "batch tokens width"],
    condition: Float[Array, "batch width"],
    key: Key[Array, ""] | None,
) -> Float[Array, "batch tokens width"]:
    """Run the blocks in turn on a batch, as a DiT without a length ODE does; no key, no dropout."""
    for index, block in enumerate(blocks):
        keys = None
        if key is not None:
            keys = jax.random.split(jax.random.fold_in(key, index), tokens.shape[0])
        step = lambda x, c, k, block=block: block(x, c, key=k)
        tokens = jax.vmap(step)(tokens, condition, keys)
    return tokens


class FinalLayer(eqx.Module):
    """Modulated LayerNorm and a dense layer from tokens to the values of a patch."""

    modulation: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, width: int, values: int, *, key: Key[Array, ""]):
        """Start at zero: a new network has no velocity anywhere."""
        zeros = jax.nn.initializers.zeros
        self.modulation = linear(width, 2 * width, key, zeros)
        self.out = linear(width, values, key, zeros)

    def __call__(
        self, tokens: Float[Array, "tokens width"], condition: Float[Array, " width"]
    ) -> Float[Array, "tokens values"]:
        """Return the velocity of each patch of one example, float32."""
        shift, scale = jnp.split(affine(self.modulation, jax.nn.silu(condition)), 2)
        return affine(self.out, modulate(layer_norm(tokens), shift, scale))
