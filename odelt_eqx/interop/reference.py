"""Checkpoints of the published Flax code (gudovskiy/odelt, kvfrans/shortcut-models)."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError
from odelt_eqx.interop.named import check_finite, check_names, flatten, listed
from odelt_eqx.interop.unpickle import unpickle
from odelt_eqx.nn.block import DiTBlock
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.nn.groups import network_template, stacked
from odelt_eqx.nn.layers import embedding

Slot = tuple[tuple[str, ...], Any]
"""The names of the reference's arrays that make up a parameter, and the parameter."""

Weights = Mapping[str, np.ndarray]
"""Arrays by slashed Flax name, for example "DiTBlock_0/Dense_0/kernel"."""

LENGTH_TABLE = "BlockEmbedder_0/Embed_0/embedding"
UNUSED = {"Embed_0/embedding"}
"""The reference's table of log-variances, which nothing in either network reads."""


def load_reference(
    path: str | Path,
    config: DiTConfig,
    weights: Literal["params_ema", "params"] = "params_ema",
) -> DiT:
    """Return the network of a reference checkpoint; nothing in the file is executed.

    Both layouts are read, with and without the outer `train_state`. A checkpoint without a length
    table (of shortcut-models, or of a plain DiT) gets a fresh one, and a warning says so.

    Raises:
        InputError: the file cannot be read, or its parameters are not those of `config`: the
            message lists what is missing, left over or of another shape, by the reference's names.

    Differs from the reference: it copies `params` over the average when it loads.

    Example:
        >>> network = odelt.load_reference("reference.pkl", reference_config)
        >>> network.config == reference_config
        True
    """
    found = _read(Path(path))
    if weights not in found:
        raise InputError(f"{path} holds no {weights}; it has {', '.join(sorted(found))}")
    return check_finite(dit_from_reference(found[weights], config), path)


def load_reference_pair(path: str | Path, config: DiTConfig) -> tuple[DiT, DiT]:
    """Return the trained and the averaged network of a reference checkpoint, read once.

    Without averaged weights, both are the trained ones. See `load_reference`.
    """
    found = _read(Path(path))
    both = found["params"], found.get("params_ema", found["params"])
    model, ema = (check_finite(dit_from_reference(weights, config), path) for weights in both)
    return model, ema


def _read(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return `params`, and `params_ema` if the file has them."""
    content = unpickle(path)
    if isinstance(content, dict):
        content = content.get("train_state", content)
    names = ("params", "params_ema")
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        raise InputError(f"{path} is no checkpoint of the reference: it holds no params")
    found = {name: flatten(content[name]) for name in names if isinstance(content.get(name), dict)}
    if LENGTH_TABLE not in found["params"]:
        warnings.warn(f"{path} has no length table: a fresh one is drawn", stacklevel=3)
    return found


def dit_from_reference(weights: Weights, config: DiTConfig) -> DiT:
    """Return the `DiT` that computes what the reference computes with `weights`.

    Args:
        weights: the reference's parameters by slashed name; without the length table, a fresh one
            is drawn.
        config: the shape of the network they belong to, which has no projector: `projector`
            becomes false.

    Raises:
        InputError: parameters are missing, left over or of another shape; all are listed.
    """
    if (config.length_embedding, config.wiring) != ("depth", "accumulate"):
        raise InputError(
            "networks of the reference have the length_embedding depth and the wiring accumulate; "
            f"got {config.length_embedding} and {config.wiring}"
        )
    config.check_published("the reference")
    config = dataclasses.replace(config, projector=False)
    template = network_template(dataclasses.replace(config, stacked=False))
    if LENGTH_TABLE not in weights:
        fresh = embedding(config.depth + 1, config.hidden_size, jax.random.key(0))
        weights = {**weights, LENGTH_TABLE: np.asarray(fresh.weight)}
    slots = list(parameter_slots(template))
    wanted = {name for names, _ in slots for name in names}
    check_names(wanted, set(weights) - UNUSED, "the checkpoint is not of this config")
    arrays, wrong = {}, []
    for names, slot in slots:
        array = assemble(names, weights)
        if array is None or array.shape != slot.shape:
            wrong.append(" + ".join(f"{name} {weights[name].shape}" for name in names))
        else:
            arrays[id(slot)] = jnp.asarray(array, slot.dtype)
    if wrong:
        raise InputError(f"parameters of another shape than the config's: {listed(wrong)}")
    model = jax.tree.map(lambda slot: arrays[id(slot)], template)
    return stacked(model) if config.stacked else model


def parameter_slots(model: DiT) -> Iterator[Slot]:
    """Yield each parameter of a `DiT` with the names of the reference's arrays in it."""
    yield from _linear(model.patch_embedding, "PatchEmbed_0/Conv_0")
    embeddings = model.condition_embedding
    for index, scalar in enumerate((embeddings.time, embeddings.step)):
        yield from _linear(scalar.hidden, f"TimestepEmbedder_{index}/Dense_0")
        yield from _linear(scalar.out, f"TimestepEmbedder_{index}/Dense_1")
    if isinstance(embeddings.condition, eqx.nn.Embedding):
        yield ("LabelEmbedder_0/Embed_0/embedding",), embeddings.condition.weight
    if model.length_embedding is not None:
        yield (LENGTH_TABLE,), model.length_embedding.weight
    for index, block in enumerate(model.blocks):
        yield from _block(block, f"DiTBlock_{index}")
    yield from _linear(model.final.modulation, "FinalLayer_0/Dense_0")
    yield from _linear(model.final.out, "FinalLayer_0/Dense_1")


def _block(block: DiTBlock, name: str) -> Iterator[Slot]:
    assert block.modulation is not None  # for the type checker
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


def assemble(names: tuple[str, ...], weights: Weights) -> np.ndarray | None:
    """Concatenate arrays of the reference; a kernel (..., in, out) becomes a weight (out, in).

    None if they do not fit together.
    """
    parts = [weights[name] for name in names]
    if names[0].endswith("/kernel"):
        if any(part.ndim < 2 for part in parts):
            return None
        parts = [part.reshape(-1, part.shape[-1]).T for part in parts]
    if len({(part.ndim, *part.shape[1:]) for part in parts}) > 1:
        return None
    return np.concatenate(parts) if parts[0].ndim else None
