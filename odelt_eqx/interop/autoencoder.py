"""Stable Diffusion's and FLUX's autoencoders from the files in which diffusers publishes them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import read_json
from odelt_eqx.interop.hub import download, is_on_hub
from odelt_eqx.interop.named import (
    check_finite,
    check_names,
    leaves_by_name,
    listed,
    read_safetensors,
)
from odelt_eqx.nn.autoencoder import Autoencoder, AutoencoderConfig, PerChannel
from odelt_eqx.serialize import from_dict

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in diffusers before 0.17, and since."""

FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "mid_block_add_attention": True,
}
"""Settings of a diffusers config for which this architecture has one value only."""

BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D"}
"""The types of block in this architecture."""

READ = (
    *("layers_per_block", "norm_num_groups", "latent_channels"),
    *("use_quant_conv", "use_post_quant_conv"),
)
"""Optional settings that are read, besides `block_out_channels` and those of `_read_factors`."""


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Return the autoencoder in a local file or folder, or on the Hugging Face hub.

    Args:
        path: a `.safetensors` file of diffusers' `AutoencoderKL`; or a folder with
            `diffusion_pytorch_model.safetensors` in it or in its `vae` subfolder; or
            `hub:OWNER/NAME`, such a folder on the hub, which is downloaded once (needs the extra
            `hub`). Half-precision weights become float32. A `config.json` beside the weights is
            read; without one the sizes are those of the arrays, with 32 groups in the norms and
            latents of 4 channels scaled by 0.18215.

    Raises:
        InputError: there is no such file, or it holds another network: the message lists what is
            missing, left over or of another shape; or only a `config.json` can say how latents of
            so many channels are scaled.
    """
    files = (CONFIG, WEIGHTS[0])
    files += tuple(f"vae/{file}" for file in files)
    folder = download(path, files) if is_on_hub(path) else Path(path)
    file = _find_weights(folder) if folder.is_dir() else folder
    weights = {_rename(name): array for name, array in read_safetensors(file).items()}
    config = file.with_name(CONFIG)
    shape = _read_config(config) if config.is_file() else _infer_config(weights, file)
    return check_finite(autoencoder_from_weights(weights, shape), file)


def autoencoder_from_weights(
    weights: Mapping[str, np.ndarray], config: AutoencoderConfig
) -> Autoencoder:
    """Return the `Autoencoder` with weights of diffusers' `AutoencoderKL`.

    Args:
        weights: arrays by dotted name, kernels (out, in, height, width).
        config: shape of the network.

    Raises:
        InputError: parameters are missing, left over or of another shape; all are listed.
    """
    template = eqx.filter_eval_shape(Autoencoder, config, key=jax.random.key(0))
    slots = leaves_by_name(template)
    check_names(slots, weights, "these are not the weights of this autoencoder")
    leaves, wrong = [], []
    for name, slot in slots.items():
        array = weights[name]
        leaf = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if leaf.shape != slot.shape:
            wrong.append(f"{name} {array.shape}")
        leaves.append(jnp.asarray(leaf, jnp.float32))
    if wrong:
        raise InputError(f"parameters of another shape than the config's: {listed(wrong)}")
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _rename(name: str) -> str:
    """Return the current name of an attention layer; other names as they are."""
    old = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{old[1]}.{RENAMED[old[2]]}.{old[3]}" if old else name


def _find_weights(folder: Path) -> Path:
    """Return the weights in a folder or in its `vae` subfolder."""
    for parent in (folder, folder / "vae"):
        for name in WEIGHTS:
            if (parent / name).is_file():
                return parent / name
    raise InputError(f"there is no {WEIGHTS[0]} in {folder} or in {folder / 'vae'}")


def _read_config(path: Path) -> AutoencoderConfig:
    """Return the shape in diffusers' config, if it is of this architecture."""
    what = "a config of an autoencoder"
    found = read_json(path, what)
    try:
        other = [f"{k} {found[k]!r}" for k, v in FIXED.items() if k in found and found[k] != v]
        blocks = [*found.get("down_block_types", ()), *found.get("up_block_types", ())]
        sizes = {"block_out_channels": found["block_out_channels"]}
        sizes |= {name: found[name] for name in READ if name in found}
        sizes["scaling_factor"], sizes["shift_factor"] = _read_factors(found)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path} is not {what}: {reason(error)}") from None
    config = from_dict(sizes, AutoencoderConfig, str(path))
    other += sorted({*map(str, blocks)} - BLOCKS)
    if other:
        raise InputError(f"{path} describes another network than AutoencoderKL: {listed(other)}")
    return config


def _read_factors(found: Mapping[str, Any]) -> tuple[PerChannel, PerChannel]:
    """Return scale and shift; statistics per channel are applied before the scale."""
    scale = _number(found.get("scaling_factor", AutoencoderConfig.scaling_factor))
    shift, mean, std = (found.get(name) for name in ("shift_factor", "latents_mean", "latents_std"))
    if mean is None and std is None:
        return scale, 0.0 if shift is None else _number(shift)
    if mean is None or std is None or shift is not None:
        raise ValueError("latents_mean and latents_std go together, and without shift_factor")
    return tuple(scale / _number(value) for value in std), tuple(map(_number, mean))


def _number(value: Any) -> float:
    """Return a number of a JSON file; a ValueError if it is something else, as true or a text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number; got {value!r}")
    return float(value)


def _infer_config(weights: Mapping[str, np.ndarray], file: Path) -> AutoencoderConfig:
    """Return the shape of the network that has these weights."""
    first = re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight")
    blocks = {
        (int(found[1]), int(found[2])): array.shape[0]
        for name, array in weights.items()
        if (found := first.fullmatch(name)) and array.ndim == 4
    }
    widths = tuple(width for (_, block), width in sorted(blocks.items()) if block == 0)
    first_of_decoder = weights.get("decoder.conv_in.weight")
    if not widths or first_of_decoder is None or first_of_decoder.ndim != 4:
        raise InputError(
            f"{file} is not an autoencoder of diffusers: it has no encoder.down_blocks or "
            "decoder.conv_in"
        )
    channels = first_of_decoder.shape[1]
    if channels != AutoencoderConfig.latent_channels:
        raise InputError(
            f"{file} makes latents of {channels} channels; put the {CONFIG} published with it "
            "beside it, which says how they are scaled"
        )
    return AutoencoderConfig(
        block_out_channels=widths,
        layers_per_block=sum(level == 0 for level, _ in blocks),
        use_quant_conv="quant_conv.weight" in weights,
        use_post_quant_conv="post_quant_conv.weight" in weights,
    )
