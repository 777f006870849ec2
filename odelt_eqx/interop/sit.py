"""Checkpoints of SiT (willisma/SiT) and REPA (sihyun-yu/REPA): plain transformers, in PyTorch.

Every difference of convention is absorbed in the weights, so that the network is a `DiT` as any
other:

- Logits are divided by sqrt(d_head) there and by d_head here, unless the config's `logit_scale`
  is "inverse-sqrt": the rows of the query are multiplied by sqrt(d_head).
- A kernel of patches is (width, channels, p, p) there; here it multiplies rows, columns, channels.
- The final layer of SiT outputs a variance as well, which no flow uses: it is left out.
- There is no step embedding: that of the network is zero.
- REPA's time runs from data to noise, v(t) = -v_repa(1 - t). The cosines and sines of f (1 - t) are
  a rotation of those of f t, which the first matrix of the time embedding takes up, and the final
  layer the sign.
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError, check_choice
from odelt_eqx.interop.named import (
    Stored,
    check_names,
    leaves_by_name,
    listed,
    open_safetensors,
    write_safetensors,
)
from odelt_eqx.interop.torch_file import open_torch
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.nn.embeddings import FREQUENCIES, ScalarEmbedding, position_table
from odelt_eqx.nn.groups import network_template, unstacked
from odelt_eqx.nn.vector import VectorNet
from odelt_eqx.ode import FixedSteps

SiTFormat = Literal["sit", "repa"]

PATCHES, FINAL, OUT = "x_embedder.proj", "final_layer.linear", "final_layer.linear.weight"
POSITIONS, PROJECTORS = "pos_embed", "projectors."

ENTRIES = ("model", "state_dict", "model_state_dict")
"""Names under which the trained weights may stand in a checkpoint, if they are not bare."""

STACKED = ".blocks.stacked."
"""What the path of a parameter has where blocks share arrays, for `.blocks.INDEX.` elsewhere."""

POSITION_ERROR = 0.01
"""The largest difference between tables of positions that comes from half precision."""


def load_sit(
    path: str | Path,
    config: DiTConfig,
    weights: Literal["ema", "model"] = "ema",
    format: SiTFormat | None = None,
) -> DiT:
    """Return the network of a checkpoint of SiT or REPA; nothing in the file is executed.

    It computes what the checkpoint's does with `depth="plain"`, and at full depth as well where the
    `wiring` is "residual", with one Euler step per group and no block outside of the groups. Other
    depths have to be trained. Rows of a length embedding are zero.

    Args:
        path: a `.pt` file of PyTorch, or a `.safetensors` file: a bare state dict or, as training
            writes them, one called model and one called ema. Half precision becomes float32.
        config: the shape of the network, which ignores the step and has no projector:
            `ignore_step` becomes true and `projector` false.
        weights: which of the two; a single state dict is both.
        format: "sit" or "repa", which has another direction of time. By default it is told by the
            names, since only REPA has projectors.

    Raises:
        InputError: the file cannot be read, or its parameters are not those of `config`: the
            message lists what is missing, left over or of another shape.

    Example:
        >>> network = odelt.load_sit("SiT.pt", sit_config)
        >>> odelt.sample(network, jnp.zeros((2, *network.shape)), [0, 1], depth="plain").shape
        (2, 4, 4, 4)
    """
    with _open(Path(path)) as found:
        return dit_from_sit(found.get(weights, next(iter(found.values()))), config, format)


def load_sit_pair(
    path: str | Path, config: DiTConfig, format: SiTFormat | None = None
) -> tuple[DiT, DiT]:
    """Return the trained and the averaged network of a checkpoint, see `load_sit`.

    With a single state dict both are the same network.
    """
    with _open(Path(path)) as found:
        networks = {name: dit_from_sit(each, config, format) for name, each in found.items()}
    first = next(iter(networks.values()))
    return networks.get("model", first), networks.get("ema", first)


def is_sit(path: Path) -> bool:
    """Whether a `.safetensors` file has the names of SiT."""
    with open_safetensors(path) as arrays:
        return any(name.endswith(f"{PATCHES}.weight") for name in arrays)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[dict[str, dict[str, Stored]]]:
    """Yield the state dicts in a file, "model" or "ema" or both, to be read while it is open."""
    open_file = open_safetensors if path.suffix == ".safetensors" else open_torch
    with open_file(path) as content:
        content = content if isinstance(content, dict) else {}
        model = [content, *(content.get(name) for name in ENTRIES)]
        model = next(filter(None, (_state_dict(entry, path) for entry in model)), None)
        found = {"model": model, "ema": _state_dict(content.get("ema"), path)}
        found = {name: weights for name, weights in found.items() if weights}
        if not found:
            raise InputError(f"{path} is no checkpoint of SiT or REPA: it has no {PATCHES}.weight")
        yield found


def _state_dict(entry: Any, path: Path) -> dict[str, Stored] | None:
    """Return the arrays of a network without what stands before all of its names, if any is one."""
    if not isinstance(entry, dict):
        return None
    arrays = {n: a for n, a in entry.items() if isinstance(n, str) and isinstance(a, Stored)}
    first = f"{PATCHES}.weight"
    prefixes = [name.removesuffix(first) for name in arrays if name.endswith(first)]
    if len(prefixes) > 1:
        raise InputError(f"{path} holds several networks, called {listed(prefixes)}")
    for prefix in prefixes:
        return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return None


def dit_from_sit(
    weights: Mapping[str, Stored], config: DiTConfig, format: SiTFormat | None = None
) -> DiT:
    """Return the `DiT` that computes what SiT or REPA computes with weights, see `load_sit`.

    Args:
        weights: arrays by the names of the state dict.
        config: the shape of the network they belong to.
        format: which of the two they are of.
    """
    if format is not None:
        check_choice("format", format, get_args(SiTFormat))
    config.check_published("SiT", "logit_scale")
    config = dataclasses.replace(config, ignore_step=True, projector=False)
    template = network_template(dataclasses.replace(config, stacked=False))
    slots = dict(_parameters(template))
    projectors = {name for name in weights if name.startswith(PROJECTORS)}
    found = set(weights) - projectors - {POSITIONS}
    check_names(slots, found, "the checkpoint is not of this config")
    format = format or ("repa" if projectors else "sit")
    variance = format == "sit" and _shapes(slots, config, True)[OUT] == weights[OUT].shape
    shapes = _shapes(slots, config, variance)
    wrong = [f"{n} {weights[n].shape}" for n, shape in shapes.items() if weights[n].shape != shape]
    if wrong:
        raise InputError(f"parameters of another shape than the config's: {listed(wrong)}")
    if not variance and not projectors and format == "sit":
        warnings.warn("read as SiT; if it is a REPA without projectors, say repa", stacklevel=3)
    _check_positions(weights, config)
    names = {id(slot): name for name, slot in slots.items()}
    named = {key: names.get(id(slot)) for key, slot in leaves_by_name(template).items()}

    def fill(key: str, slot: jax.ShapeDtypeStruct) -> jax.Array:
        """Return a parameter: that of the checkpoint, or zero where it has none."""
        array = np.zeros(slot.shape, np.float32)
        rows: dict[str, Any] = {key: array}
        if STACKED in key:
            rows = {key.replace(STACKED, f".blocks.{i}."): row for i, row in enumerate(array)}
        for key, row in rows.items():
            if name := named[key]:
                row[...] = _to_ours(name, weights[name].read(), config, format)
                if not np.isfinite(row).all():
                    raise InputError(f"{name} of the checkpoint has values that are not finite")
        return jnp.asarray(array)

    form = network_template(config)
    filled = [fill(key, slot) for key, slot in leaves_by_name(form).items()]
    model = jax.tree.unflatten(jax.tree.structure(form), filled)
    # The embedding of the step is zero by its last layer alone, so that it can be trained.
    fresh = ScalarEmbedding(config.hidden_size, key=jax.random.key(0)).hidden
    return eqx.tree_at(lambda m: m.condition_embedding.step.hidden, model, fresh)


def save_sit(model: DiT | VectorNet, path: str | Path) -> None:
    """Write a network whose full depth is a plain transformer as SiT's `.safetensors`.

    The names, shapes and conventions are those of the network that SiT's own code builds by
    default; the variance that it outputs as well is zero. A projector is left out.

    Raises:
        InputError: the network is not one that SiT's code can run.

    Example:
        >>> network = odelt.load_sit("SiT.pt", sit_config)
        >>> odelt.save_sit(network, "SiT.safetensors")
    """
    if not isinstance(model, DiT):
        raise InputError(f"SiT's layout is for a DiT; got a {type(model).__name__}")
    _check_plain(model.config)
    plain: DiT = unstacked(model)
    config, embeddings = plain.config, plain.condition_embedding
    step = embeddings.step(jnp.zeros(()))  # a constant
    bias = jnp.asarray(embeddings.time.out.bias) + step
    plain = eqx.tree_at(lambda m: m.condition_embedding.time.out.bias, plain, bias)
    arrays = {n: _to_sit(n, np.asarray(array), config) for n, array in _parameters(plain)}
    arrays[POSITIONS] = position_table(config.grid, config.hidden_size)[None]
    write_safetensors(Path(path), arrays, {"format": "pt"})


def _parameters(model: DiT) -> Iterator[tuple[str, Any]]:
    """Yield each parameter that a `DiT` has in common with SiT, by its name there."""
    embeddings = model.condition_embedding
    yield from _linear(PATCHES, model.patch_embedding)
    yield from _linear("t_embedder.mlp.0", embeddings.time.hidden)
    yield from _linear("t_embedder.mlp.2", embeddings.time.out)
    if isinstance(embeddings.condition, eqx.nn.Embedding):
        yield "y_embedder.embedding_table.weight", embeddings.condition.weight
    for index, block in enumerate(model.blocks):
        name = f"blocks.{index}"
        assert block.modulation is not None  # for the type checker
        yield from _linear(f"{name}.adaLN_modulation.1", block.modulation)
        yield from _linear(f"{name}.attn.qkv", block.attention.qkv)
        yield from _linear(f"{name}.attn.proj", block.attention.out)
        yield from _linear(f"{name}.mlp.fc1", block.mlp.hidden)
        yield from _linear(f"{name}.mlp.fc2", block.mlp.out)
    yield from _linear("final_layer.adaLN_modulation.1", model.final.modulation)
    yield from _linear(FINAL, model.final.out)


def _linear(name: str, layer: eqx.nn.Linear) -> Iterator[tuple[str, Any]]:
    yield f"{name}.weight", layer.weight
    yield f"{name}.bias", layer.bias


def _shapes(
    slots: Mapping[str, Any], config: DiTConfig, variance: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's parameters; `variance`: its final layer outputs one."""
    shapes = {name: slot.shape for name, slot in slots.items()}
    patch = (config.channels, config.patch_size, config.patch_size)
    shapes[f"{PATCHES}.weight"] = (config.hidden_size, *patch)
    for name in (OUT, f"{FINAL}.bias"):
        rows, *rest = shapes[name]
        shapes[name] = (rows * (1 + variance), *rest)
    return shapes


def _check_positions(weights: Mapping[str, Stored], config: DiTConfig) -> None:
    """Raise an InputError if a checkpoint has other embeddings of positions than the fixed ones."""
    if POSITIONS not in weights:
        return
    ours, shape = position_table(config.grid, config.hidden_size), weights[POSITIONS].shape
    if shape != (1, *ours.shape):
        raise InputError(f"{POSITIONS} has shape {shape}; this config needs {(1, *ours.shape)}")
    theirs = weights[POSITIONS].read().astype(np.float32)[0]
    if not np.abs(theirs - ours).max() < POSITION_ERROR:
        raise InputError(f"{POSITIONS} is not the fixed table of sines and cosines")


def _to_ours(name: str, array: np.ndarray, config: DiTConfig, format: SiTFormat) -> np.ndarray:
    """Return the parameter that stands for SiT's or REPA's, float32."""
    array = array.astype(np.float32)
    width = config.hidden_size
    if name == f"{PATCHES}.weight":
        return array.transpose(0, 2, 3, 1).reshape(width, -1)
    if ".attn.qkv." in name:
        array[:width] *= _query_factor(config)
    elif name in (OUT, f"{FINAL}.bias"):
        patch = array.reshape(config.patch_size**2, -1, *array.shape[1:])
        velocity = patch[:, : config.channels].reshape(-1, *array.shape[1:])
        return -velocity if format == "repa" else velocity
    elif name == "t_embedder.mlp.0.weight" and format == "repa":
        return _reverse_time(array)
    return array


def _to_sit(name: str, array: np.ndarray, config: DiTConfig) -> np.ndarray:
    """Return SiT's parameter that stands for ours: the inverse of `_to_ours`."""
    width, patch = config.hidden_size, config.patch_size
    if name == f"{PATCHES}.weight":
        kernel = array.reshape(width, patch, patch, -1).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(kernel)
    if ".attn.qkv." in name:
        array = array.copy()
        array[:width] /= _query_factor(config)
    elif name in (OUT, f"{FINAL}.bias"):
        velocity = array.reshape(patch**2, -1, *array.shape[1:])
        both = np.concatenate([velocity, np.zeros_like(velocity)], axis=1)
        return both.reshape(-1, *array.shape[1:])
    return array


def _query_factor(config: DiTConfig) -> float:
    """Return by what our queries are larger than SiT's."""
    return math.sqrt(config.head_size) if config.logit_scale == "inverse" else 1.0


def _reverse_time(weight: np.ndarray) -> np.ndarray:
    """Return the matrix that maps the features of t to what `weight` maps those of 1 - t to."""
    half = FREQUENCIES // 2
    angle = np.exp(-np.log(10_000) * np.arange(half) / half)
    cos, sin = np.split(weight.astype(np.float64), 2, axis=1)
    turned = (
        cos * np.cos(angle) + sin * np.sin(angle),
        cos * np.sin(angle) - sin * np.cos(angle),
    )
    return np.concatenate(turned, axis=1).astype(np.float32)


def _check_plain(config: DiTConfig) -> None:
    """Raise an InputError unless SiT's code can run a network of this config at full depth."""
    config.check_published("SiT", "logit_scale")
    length = config.length
    one_step = isinstance(length, FixedSteps) and (length.steps, length.solver) == (1, "euler")
    needs = {
        "the wiring residual": config.wiring == "residual",
        "one Euler step per group": one_step,
        "no block outside of the groups": not config.dead_blocks,
        "no length embedding": config.length_embedding == "none",
        "steps that are ignored (ignore_step)": config.ignore_step,
        "classes as its condition": config.num_classes is not None,
        "square images": config.shape[0] == config.shape[1],
    }
    if missing := [need for need, met in needs.items() if not met]:
        raise InputError(f"SiT's layout is for networks with {'; '.join(missing)}")
