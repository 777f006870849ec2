"""Weights from another run or file: read, converted, started from, learned from."""

import dataclasses
import itertools
import shutil
import sys
import zipfile
from collections.abc import Collection, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from odelt_eqx.config import TrainConfig, save_config
from odelt_eqx.errors import InputError
from odelt_eqx.files import atomic_folder, write_errors
from odelt_eqx.interop import (
    load_reference_pair,
    load_safetensors,
    load_sit_pair,
    save_safetensors,
    save_sit,
)
from odelt_eqx.interop.hub import is_on_hub
from odelt_eqx.interop.named import check_names, leaves_by_name
from odelt_eqx.interop.safetensors import model_card
from odelt_eqx.interop.sit import is_sit
from odelt_eqx.interop.truncate import truncate
from odelt_eqx.nn import AnyNetworkConfig, DiTConfig, stacked, unstacked
from odelt_eqx.nn.block import PUBLISHED
from odelt_eqx.objective import DEPTH_TYPES, TRAIN_TYPES
from odelt_eqx.presets import of_type
from odelt_eqx.training.checkpoint import CONFIG, AnyNetwork, Checkpoints
from odelt_eqx.training.load import CONTENTS, load, load_average, run_config
from odelt_eqx.training.step import TrainState, is_trained

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth", ".ckpt", ".bin")

ALIKE = PUBLISHED | {"num_heads", "patch_size"}
"""The fields of a config that change what is computed, and no parameter's shape."""

WeightFormat = Literal["reference", "sit", "repa"]


def read_weights(
    source: str | Path, config: TrainConfig | None = None, format: WeightFormat | None = None
) -> tuple[AnyNetwork, AnyNetwork]:
    """Return the trained and the EMA weights of a run folder or a file.

    Args:
        source: a run folder, a `.safetensors` file of this package or `hub:OWNER/NAME` with one, a
            pickle of the reference, or a checkpoint of SiT or REPA (`.pt` or `.safetensors`).
        config: its `model` is the shape of the network in a foreign file, which does not state it.
        format: whose file it is; by default that is told by its suffix and the names in it.

    Raises:
        InputError: it is none of them, or does not fit `config`.
    """
    if format is not None and (is_on_hub(source) or Path(source).is_dir()):
        raise InputError(f"{source} is no file of another package: leave out format")
    if is_on_hub(source):
        model = load_safetensors(source)
        return model, model
    source = Path(source)
    if source.is_dir():
        return load(source, "model"), load(source, "ema")
    if source.suffix == SAFETENSORS and format is None and not is_sit(source):
        model = load_safetensors(source)
        return model, model
    if config is None:
        raise InputError(f"{source} is neither a run folder nor a {SAFETENSORS} file; convert it")
    if not isinstance(config.model, DiTConfig):
        raise InputError(f"{source} is a file of a DiT; choose a preset whose network is one")
    from_torch = source.suffix in (*TORCH, SAFETENSORS) or zipfile.is_zipfile(source)
    if format == "reference" or (format is None and not from_torch):
        return load_reference_pair(source, config.model)
    return load_sit_pair(source, config.model, format)


def convert(
    source: Path,
    target: Path,
    config: TrainConfig,
    depth: int | None = None,
    format: WeightFormat | None = None,
    layout: Literal["odelt", "sit"] = "odelt",
    card: str = "",
    average: tuple[float, int | None] | None = None,
) -> None:
    """Write the weights of `source` as a run folder, or its EMA weights as a safetensors file.

    Args:
        source: what `read_weights` reads.
        target: a path that does not exist yet, whose suffix decides, or `hub:OWNER/NAME` for a
            safetensors file on the Hugging Face Hub.
        config: the run that the weights will belong to. Its `model` is the shape of the network in
            a foreign file; any other source has a shape of its own, which replaces it. A run folder
            keeps what it remembers of its data.
        depth: keep only the blocks that the network runs at this depth.
        format: whose file `source` is, if it is a foreign one.
        layout: of a safetensors file: that of this package, or that of SiT, see `save_sit`.
        card: on the hub, what its page says besides how to sample and the config, Markdown.
        average: width and step of the average of a run that takes the place of its EMA weights, see
            `load_average`.

    Raises:
        InputError: `target` exists or cannot be written, `source` cannot be read or has no such
            average, the network has no such depth, no file of that layout can hold it, or the data
            or the training of `config` are for other networks.
    """
    if target.exists():
        raise InputError(f"{target} exists; choose another path")
    if layout == "sit" and is_on_hub(target):
        raise InputError(
            f"the layout sit is that of a local file, not of {target}: write a path that ends in "
            f"{SAFETENSORS}"
        )
    if layout == "sit" and target.suffix != SAFETENSORS:
        raise InputError(f"the layout sit is that of a file: end {target} in {SAFETENSORS}")
    model, ema = read_weights(source, config, format)
    if average is not None:
        ema = load_average(source, *average)
    if depth is not None:
        model, ema = truncate(model, depth), truncate(ema, depth)
    if is_on_hub(target):
        save_safetensors(ema, target, model_card(ema, str(target), card))
        return
    if target.suffix == SAFETENSORS:
        (save_safetensors if layout == "odelt" else save_sit)(ema, target)
        return
    config = _run_of(model.config, config, source)
    with write_errors(target), atomic_folder(target) as temporary:
        with Checkpoints(temporary) as checkpoints:
            checkpoints.save_weights(model, ema, config)
        save_config(config, temporary / CONFIG)
        if (source / CONTENTS).is_file() and run_config(source).data == config.data:
            shutil.copyfile(source / CONTENTS, temporary / CONTENTS)


def _run_of(model: AnyNetworkConfig, config: TrainConfig, source: Path) -> TrainConfig:
    """Return `config` with this network of `source`; a note says if its data have another shape.

    Raises:
        InputError: the data or the training of `config` are for other networks.
    """
    shape, expected = model.shape, config.model.shape
    if len(shape) != len(expected):
        kind = "moons for vectors" if len(shape) == 1 else "digits for images"
        raise InputError(
            f"{source} makes samples of shape {shape}, and the data of this config are of shape "
            f"{expected}: name a preset whose data are alike, such as {kind}"
        )
    try:
        fitting = _with_network(config, model)
    except InputError as error:
        singles = ((name,) for name in (*DEPTH_TYPES, *TRAIN_TYPES))
        types = itertools.chain(singles, itertools.product(DEPTH_TYPES, TRAIN_TYPES))
        words = next((names for names in types if _fits_types(config, names, model)), None)
        if words is None or (source / CONFIG).is_file():
            raise
        raise InputError(
            f"the training of this config does not fit the network of {source} ({error}): name one "
            f"that does behind the preset, such as {' '.join(words)}"
        ) from None
    if shape != expected:
        print(
            f"note: {source} makes samples of shape {shape}, the data of this config are of shape "
            f"{expected}: to evaluate the run, name data of its own",
            file=sys.stderr,
        )
    return fitting


def _with_network(config: TrainConfig, model: AnyNetworkConfig) -> TrainConfig:
    """Return `config` with a network; an InputError if the training is for others."""
    changed = dataclasses.replace(config, model=model)
    if changed.model.ignore_step != model.ignore_step:
        raise InputError("the network sees its step, and this training would hide it")
    if changed.model.max_guidance != model.max_guidance:
        told = changed.model.max_guidance
        raise InputError(f"max_guidance of the network is {model.max_guidance}, here it is {told}")
    return changed


def _fits_types(config: TrainConfig, names: Sequence[str], model: AnyNetworkConfig) -> bool:
    """Whether a network can be trained as `config` is, but by the training types of these names."""
    try:
        _with_network(reduce(of_type, names, config), model)
    except InputError:
        return False
    return True


def init_from(state: TrainState, source: str | Path, frozen: Collection[str] = ()) -> TrainState:
    """Return `state` with the weights and the EMA weights of `source`.

    The networks must have parameters of the same names and shapes, and blocks, heads and patches
    that are alike. Grouping, layout, wiring, the solver of the length, what is told of the step and
    everything else that is not a parameter stay those of `state`. An embedding of the length that
    `source` lacks is zero: so the first network in the wiring "residual" is, at its full depth, a
    plain `source`. One that `state` lacks is left out. A network that is told guidance begins as a
    `source` that is not, whatever it is told. A projector that `source` lacks is that of `state`.

    Args:
        frozen: names of the fields that are not trained; both networks get the EMA weights there.

    Raises:
        InputError: `source` cannot be read or has other shapes.
    """
    model, ema = (fit(weights, state.model, source) for weights in read_weights(source))
    kept = jax.tree.map(jnp.copy, ema)  # a state that is donated holds no array twice
    model = eqx.combine(eqx.filter(model, is_trained(model, frozen)), kept)
    return dataclasses.replace(state, model=model, ema=ema)


def add_teacher(state: TrainState, config: TrainConfig) -> TrainState:
    """Return `state` with the teacher that the run starts with, if it needs or asks for one.

    It is the EMA of `config.teacher`; by default, where the objective distils a trained network,
    that of `config.init_from`. Either keeps its own config, and so is evaluated as it was trained.

    Raises:
        InputError: there is nothing to distil, the objective cannot use a teacher, or the teacher
            is a network for other data.
    """
    taught_by, name = config.objective.taught_by, type(config.objective).__name__
    distils = taught_by in ("frozen", "stages")
    source = config.teacher or (config.init_from if distils else None)
    if source is None:
        if distils:
            raise InputError("this objective distils a trained network; give teacher or init_from")
        return state
    if taught_by == "data":
        raise InputError(f"{name} learns from data alone; leave out teacher")
    _, teacher = read_weights(source)
    for field in ("shape", "num_classes", "denoise_timesteps"):
        ours, theirs = getattr(config.model, field), getattr(teacher.config, field)
        if ours != theirs:
            raise InputError(f"teacher {source} has {field} {theirs}, not {ours}")
    if taught_by == "stages":  # later it is replaced by the student's EMA, which ignores the step
        if not teacher.config.ignore_step:
            raise InputError(f"teacher {source} was trained to see its step; distil a flow instead")
        teacher = fit(teacher, state.ema, source)
    return dataclasses.replace(state, teacher=teacher)


def fit(weights: AnyNetwork, template: Any, source: str | Path) -> Any:
    """Return a copy of `weights` with the groups, layout and config of `template`.

    Raises:
        InputError: the parameters have other names or shapes, or the blocks compute something else
            with them; it names the `source` of the weights.
    """
    if type(weights.config) is not type(template.config):
        has, needs = (type(network).__name__ for network in (weights, template))
        raise InputError(f"{source} holds a {has}, this network is a {needs}")
    weights = unstacked(weights)
    if template.length_embedding is None or weights.length_embedding is None:
        none = jax.tree.map(jnp.zeros_like, template.length_embedding)
        weights = eqx.tree_at(
            lambda m: m.length_embedding, weights, none, is_leaf=lambda leaf: leaf is None
        )
    weights = _with_guidance(weights, template)
    if template.projector is None or weights.projector is None:
        weights = eqx.tree_at(
            lambda m: m.projector, weights, template.projector, is_leaf=lambda leaf: leaf is None
        )
    form = eqx.filter_eval_shape(unstacked, template)
    if weights.depth != template.depth:
        raise InputError(f"{source} has depth {weights.depth}, this network has {template.depth}")
    for name in sorted(ALIKE):
        has, needs = (getattr(network.config, name, None) for network in (weights, template))
        if has != needs:
            raise InputError(f"{source} has {name} {has}, this network {needs}: make them alike")
    ours, theirs = _named_shapes(form), _named_shapes(weights)
    for name, shape in ours.items():
        if theirs.get(name, shape) != shape:
            raise InputError(f"{source} has {name} of shape {theirs[name]}, not {shape}")
    check_names(ours, theirs, f"the weights of {source} are of another network")
    leaves = map(jnp.copy, jax.tree.leaves(weights))
    copied = jax.tree.unflatten(jax.tree.structure(form), leaves)
    return stacked(copied) if template.config.stacked else copied


def _with_guidance(weights: AnyNetwork, template: Any) -> AnyNetwork:
    """Return `weights` with an embedding of guidance that adds nothing, if they lack it."""
    told = template.condition_embedding.guidance
    if told is None or weights.condition_embedding.guidance is not None:
        return weights
    outs = lambda told: [told.weight.out, told.start.out, told.end.out]
    told = eqx.tree_at(outs, told, replace_fn=lambda out: jax.tree.map(jnp.zeros_like, out))
    where = lambda network: network.condition_embedding.guidance
    return eqx.tree_at(where, weights, told, is_leaf=lambda leaf: leaf is None)


def _named_shapes(network: AnyNetwork) -> dict[str, tuple[int, ...]]:
    """Return the shapes of parameters by name, a block called by its number, not by its group."""
    blocks = [block for group in network.groups for block in group.blocks]
    rest = eqx.tree_at(lambda n: n.groups, network, None)
    named = leaves_by_name(rest) | leaves_by_name({"blocks": blocks})
    return {name: leaf.shape for name, leaf in named.items()}
