"""Weights carried from one place to another: the reference's, ours, and safetensors."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from odelt_eqx.config import TrainConfig, save_config
from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.interop import load_reference_pair, load_safetensors, save_safetensors
from odelt_eqx.interop.truncate import truncate
from odelt_eqx.nn.dit import DiT
from odelt_eqx.nn.layout import stacked, unstacked
from odelt_eqx.training.checkpoint import CONFIG, Checkpoints, load
from odelt_eqx.training.step import TrainState

SAFETENSORS = ".safetensors"


def read_weights(source: Path, config: TrainConfig | None = None) -> tuple[DiT, DiT]:
    """Return the trained and the averaged weights of a run folder, a pickle or a safetensors file.

    Args:
        source: a run folder, a `.safetensors` file of ours, or a pickle of the reference.
        config: shape of the network in a pickle, which does not say it.

    Raises:
        InputError: it is none of them, or does not fit `config`.
    """
    if source.is_dir():
        return load(source, "model"), load(source, "ema")
    if source.suffix == SAFETENSORS:
        model = load_safetensors(source)
        return model, model
    if config is None:
        raise InputError(f"{source} is neither a run folder nor a {SAFETENSORS} file; convert it")
    return load_reference_pair(source, config.model)


def convert(source: Path, target: Path, config: TrainConfig, depth: int | None = None) -> None:
    """Write the weights of `source` as a run folder, or their average as a safetensors file.

    Args:
        source: what `read_weights` reads.
        target: a path that does not exist yet; its suffix decides.
        config: the run that the weights are to belong to; its `model` is the shape of a pickle's
            network, and is replaced by what any other source says of itself.
        depth: keep only the blocks that the network runs at this depth.

    Raises:
        InputError: `target` exists, `source` cannot be read, or the network has not that depth.
    """
    if target.exists():
        raise InputError(f"{target} exists; choose another path")
    model, ema = read_weights(source, config)
    if depth is not None:
        model, ema = truncate(model, depth), truncate(ema, depth)
    if target.suffix == SAFETENSORS:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_safetensors(ema, target)
        return
    config = dataclasses.replace(config, model=model.config)
    target.mkdir(parents=True)
    with Checkpoints(target) as checkpoints:
        checkpoints.save_weights(model, ema, config)
    with replacing(target / CONFIG) as beside:
        save_config(config, beside)


def init_from(state: TrainState, source: Path) -> TrainState:
    """Return `state` with the weights of `source` and its average.

    The two networks must have parameters of the same shapes; how they are grouped, and what is not
    a parameter, is the state's.

    Raises:
        InputError: `source` cannot be read or has other shapes.
    """
    model, ema = (fitted(weights, state.model, source) for weights in read_weights(source))
    return dataclasses.replace(state, model=model, ema=ema)


def fitted(weights: DiT, template: DiT, source: str | Path) -> DiT:
    """Return a copy of `weights` in the form of `template`: its groups, its layout, its config.

    Args:
        weights: a network.
        template: a network whose parameters have the same shapes.
        source: where the weights are from, for the message.

    Raises:
        InputError: the parameters have other shapes.
    """
    form, leaves = eqx.filter_eval_shape(unstacked, template), jax.tree.leaves(unstacked(weights))
    named = jax.tree_util.tree_leaves_with_path(form)
    for (path, ours), theirs in zip(named, leaves, strict=False):
        if ours.shape != theirs.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(f"{source} has {name} of shape {theirs.shape}, not {ours.shape}")
    if len(leaves) != len(named):
        raise InputError(f"{source} has depth {weights.config.depth}, another than this network's")
    copied = jax.tree.unflatten(jax.tree.structure(form), map(jnp.copy, leaves))
    return stacked(copied) if template.config.stacked else copied
