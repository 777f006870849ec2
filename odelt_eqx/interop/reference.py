"""The parameter tree of the published Flax code, as ours."""

from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.nn.block import DiTBlock
from odelt_eqx.nn.dit import DiT, DiTConfig

Slot = tuple[tuple[str, ...], Any]
"""What the reference calls a parameter, in one piece or several, and ours."""

Weights = Mapping[str, np.ndarray]
"""Arrays by slashed Flax name, for example "DiTBlock_0/Dense_0/kernel"."""


def dit_from_reference(weights: Weights, config: DiTConfig) -> DiT:
    """Return the `DiT` that computes what the reference computes with `weights`.

    Args:
        weights: the reference's parameters by slashed name.
        config: the shape of the network they belong to.

    Raises:
        KeyError: a parameter is missing.
        ValueError: a parameter has another shape than the network's.
    """
    template = eqx.filter_eval_shape(DiT, config, key=jax.random.key(0))
    arrays = {}
    for names, slot in _slots(template):
        array = _assemble(names, weights)
        if array.shape != slot.shape:
            raise ValueError(f"{' and '.join(names)} must make {slot.shape}; got {array.shape}")
        arrays[id(slot)] = jnp.asarray(array, slot.dtype)
    return jax.tree.map(lambda slot: arrays[id(slot)], template)


def _slots(model: DiT) -> Iterator[Slot]:
    """Yield each parameter with the names of what the reference calls it."""
    yield from _linear(model.patch_embedding, "PatchEmbed_0/Conv_0")
    for index, scalar in enumerate((model.time_embedding, model.step_embedding)):
        yield from _linear(scalar.hidden, f"TimestepEmbedder_{index}/Dense_0")
        yield from _linear(scalar.out, f"TimestepEmbedder_{index}/Dense_1")
    yield ("LabelEmbedder_0/Embed_0/embedding",), model.label_embedding.weight
    yield ("BlockEmbedder_0/Embed_0/embedding",), model.length_embedding.weight
    for index, block in enumerate(model.blocks):
        yield from _block(block, f"DiTBlock_{index}")
    yield from _linear(model.final.modulation, "FinalLayer_0/Dense_0")
    yield from _linear(model.final.out, "FinalLayer_0/Dense_1")


def _block(block: DiTBlock, name: str) -> Iterator[Slot]:
    yield from _linear(block.modulation, f"{name}/Dense_0")
    # The reference makes the key before the query.
    query, key, value = (f"{name}/Dense_{i}" for i in (2, 1, 3))
    yield from _linear(block.attention.qkv, query, key, value)
    yield from _linear(block.attention.out, f"{name}/Dense_4")
    yield from _linear(block.mlp.hidden, f"{name}/MlpBlock_0/Dense_0")
    yield from _linear(block.mlp.out, f"{name}/MlpBlock_0/Dense_1")


def _linear(layer: eqx.nn.Linear, *names: str) -> Iterator[Slot]:
    yield tuple(f"{name}/kernel" for name in names), layer.weight
    yield tuple(f"{name}/bias" for name in names), layer.bias


def _assemble(names: tuple[str, ...], weights: Weights) -> np.ndarray:
    """Join what the reference keeps apart, a kernel (..., in, out) as a weight (out, in)."""
    parts = [weights[name] for name in names]
    if names[0].endswith("/kernel"):
        parts = [part.reshape(-1, part.shape[-1]).T for part in parts]
    return np.concatenate(parts)
