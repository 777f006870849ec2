"""The few layers that every part of the networks shares."""

from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.nn.product import product

NormKind = Literal["layer", "rms", "scaled-rms"]
MlpKind = Literal["gelu", "swiglu"]

layer_norm = jax.jit(partial(jax.nn.standardize, axis=-1, epsilon=1e-6))
"""LayerNorm without scale and bias.

The nested `jit` is load-bearing: without it XLA's CPU backend fuses the residual stream into the
norm and recomputes it in the backward pass, at several times the cost.
"""


@jax.jit  # as above
def rms_norm(x: Float[Array, "*any width"]) -> Float[Array, "*any width"]:
    """RMSNorm without scale, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


class Norm(eqx.Module):
    """LayerNorm or RMSNorm over the last axis, float32.

    A learned scale is `1 + scale`, as in a modulation, so that weight decay draws it to one.
    """

    scale: Float[Array, " width"] | None
    kind: NormKind = eqx.field(static=True)

    def __init__(self, kind: NormKind, width: int):
        """Start with a scale of one, if it is learned."""
        self.scale = jnp.zeros(width, jnp.float32) if kind == "scaled-rms" else None
        self.kind = kind

    def __call__(self, x: Float[Array, "*any width"]) -> Float[Array, "*any width"]:
        """Normalise every row."""
        if self.kind == "layer":
            return layer_norm(x)
        x = rms_norm(x)
        return x if self.scale is None else x * (1 + jnp.broadcast_to(self.scale, x.shape))


def affine(linear: eqx.nn.Linear, x: Float[Array, "*any in"]) -> Float[Array, "*any out"]:
    """Apply `linear` over the last axis, in the dtype of `x`.

    Many rows are one matrix product as it stands; `jax.vmap(linear)` would leave a transpose for
    the backward pass (1.3 x the time of an MLP's gradient on CPU). A single row is `weight @ x`:
    for the product the other way round XLA's CPU backend copies the whole weight first.
    """
    weight = linear.weight.astype(x.dtype)
    y = weight @ x if x.ndim == 1 else product(x, weight)
    if linear.bias is None:
        return y
    return y + jnp.broadcast_to(linear.bias.astype(x.dtype), y.shape)


def linear(
    inputs: int,
    outputs: int,
    key: Key[Array, ""],
    init: jax.nn.initializers.Initializer = jax.nn.initializers.glorot_uniform(),
) -> eqx.nn.Linear:
    """Return a linear layer whose weight is drawn from `init` and whose bias is zero."""
    layer = eqx.nn.Linear(inputs, outputs, key=key)
    weight = init(key, (inputs, outputs), jnp.float32).T
    bias = jnp.zeros(outputs, jnp.float32)
    return eqx.tree_at(lambda p: (p.weight, p.bias), layer, (weight, bias))


def embedding(rows: int, width: int, key: Key[Array, ""]) -> eqx.nn.Embedding:
    """Return a table whose entries are drawn from N(0, 0.02^2)."""
    return eqx.nn.Embedding(weight=0.02 * jax.random.normal(key, (rows, width), jnp.float32))


def modulate(
    x: Float[Array, "*tokens width"],
    shift: Float[Array, "*#tokens width"],
    scale: Float[Array, "*#tokens width"],
) -> Float[Array, "*tokens width"]:
    """Return `x (1 + scale) + shift`, the same for every token."""
    scale, shift = jnp.broadcast_to(scale, x.shape), jnp.broadcast_to(shift, x.shape)
    return x * (1 + scale) + shift


def mlp_width(width: int, ratio: int, kind: MlpKind) -> int:
    """Return the width of the hidden layer of an MLP.

    That of a SwiGLU, which has three matrices in place of two, is the multiple of 8 nearest to two
    thirds of the other's.
    """
    return ratio * width if kind == "gelu" else 8 * max(round(ratio * width / 12), 1)


class Mlp(eqx.Module):
    """Dense, tanh-GELU, dropout, dense, dropout; or SwiGLU in place of dense and GELU.

    SwiGLU (arXiv 2002.05202) is `silu(a) * b` of two dense layers, which are drawn as one.
    """

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    dropout: float = eqx.field(static=True)
    kind: MlpKind = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        ratio: int,
        dropout: float,
        kind: MlpKind = "gelu",
        *,
        key: Key[Array, ""],
    ):
        """Draw the weights; the hidden layer is `ratio` times as wide, see `mlp_width`."""
        hidden_key, out_key = jax.random.split(key)
        inner = mlp_width(width, ratio, kind)
        self.hidden = linear(width, inner if kind == "gelu" else 2 * inner, hidden_key)
        self.out = linear(inner, width, out_key)
        self.dropout, self.kind = dropout, kind

    def __call__(
        self, x: Float[Array, "*tokens width"], key: Key[Array, ""] | None
    ) -> Float[Array, "*tokens width"]:
        """Apply the layer to every token; without a key there is no dropout."""
        dropout = eqx.nn.Dropout(self.dropout, inference=key is None)
        keys = (None, None) if key is None else jax.random.split(key)
        x = affine(self.hidden, x)
        if self.kind == "gelu":
            x = jax.nn.gelu(x, approximate=True)
        else:
            gate, x = jnp.split(x, 2, axis=-1)
            x = jax.nn.silu(gate) * x
        return dropout(affine(self.out, dropout(x, key=keys[0])), key=keys[1])


class FinalLayer(eqx.Module):
    """Modulated norm and a dense layer, from the accumulated state to velocities."""

    modulation: eqx.nn.Linear
    out: eqx.nn.Linear
    norm: Norm

    def __init__(self, width: int, values: int, norm: NormKind = "layer", *, key: Key[Array, ""]):
        """Start at zero: the velocity of a fresh network is zero everywhere."""
        zeros = jax.nn.initializers.zeros
        self.modulation = linear(width, 2 * width, key, zeros)
        self.out = linear(width, values, key, zeros)
        self.norm = Norm(norm, width)

    def __call__(
        self, u: Float[Array, "*tokens width"], condition: Float[Array, " width"]
    ) -> Float[Array, "*tokens values"]:
        """Return the velocity of one example, float32."""
        shift, scale = jnp.split(affine(self.modulation, jax.nn.silu(condition)), 2)
        return affine(self.out, modulate(self.norm(u), shift, scale))
