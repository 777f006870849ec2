"""The few layers that every part of the networks shares."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

layer_norm = jax.jit(partial(jax.nn.standardize, axis=-1, epsilon=1e-6))
"""LayerNorm without scale and bias.

The nested `jit` is load-bearing: without it XLA's CPU backend fuses the residual stream into the
norm and recomputes it in the backward pass, at several times the cost.
"""


def affine(linear: eqx.nn.Linear, x: Float[Array, "*any in"]) -> Float[Array, "*any out"]:
    """Apply `linear` over the last axis, in the dtype of `x`.

    Many rows are one matrix product as it stands; `jax.vmap(linear)` would leave a transpose for
    the backward pass (1.3 x the time of an MLP's gradient on CPU). A single row is `weight @ x`:
    for the product the other way round XLA's CPU backend copies the whole weight first.
    """
    weight = linear.weight.astype(x.dtype)
    y = weight @ x if x.ndim == 1 else x @ weight.T
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
    return eqx.tree_at(lambda p: (p.weight, p.bias), layer, (weight, jnp.zeros(outputs)))


def embedding(rows: int, width: int, key: Key[Array, ""]) -> eqx.nn.Embedding:
    """Return a table whose entries are drawn from N(0, 0.02^2)."""
    return eqx.nn.Embedding(weight=0.02 * jax.random.normal(key, (rows, width)))


def modulate(
    x: Float[Array, "*tokens width"],
    shift: Float[Array, "*#tokens width"],
    scale: Float[Array, "*#tokens width"],
) -> Float[Array, "*tokens width"]:
    """Return `x (1 + scale) + shift`, the same for every token."""
    scale, shift = jnp.broadcast_to(scale, x.shape), jnp.broadcast_to(shift, x.shape)
    return x * (1 + scale) + shift


class Mlp(eqx.Module):
    """Dense, tanh-GELU, dropout, dense, dropout."""

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    dropout: float = eqx.field(static=True)

    def __init__(self, width: int, ratio: int, dropout: float, *, key: Key[Array, ""]):
        """Draw the weights; the hidden layer is `ratio` times as wide."""
        hidden_key, out_key = jax.random.split(key)
        self.hidden = linear(width, ratio * width, hidden_key)
        self.out = linear(ratio * width, width, out_key)
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "*tokens width"], key: Key[Array, ""] | None
    ) -> Float[Array, "*tokens width"]:
        """Apply the layer to every token; without a key there is no dropout."""
        dropout = eqx.nn.Dropout(self.dropout, inference=key is None)
        keys = (None, None) if key is None else jax.random.split(key)
        x = jax.nn.gelu(affine(self.hidden, x), approximate=True)
        return dropout(affine(self.out, dropout(x, key=keys[0])), key=keys[1])


class FinalLayer(eqx.Module):
    """Modulated LayerNorm and a dense layer, from the accumulated state to velocities."""

    modulation: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, width: int, values: int, *, key: Key[Array, ""]):
        """Start at zero: the velocity of a fresh network is zero everywhere."""
        zeros = jax.nn.initializers.zeros
        self.modulation = linear(width, 2 * width, key, zeros)
        self.out = linear(width, values, key, zeros)

    def __call__(
        self, u: Float[Array, "*tokens width"], condition: Float[Array, " width"]
    ) -> Float[Array, "*tokens values"]:
        """Return the velocity of one example, float32."""
        shift, scale = jnp.split(affine(self.modulation, jax.nn.silu(condition)), 2)
        return affine(self.out, modulate(layer_norm(u), shift, scale))
