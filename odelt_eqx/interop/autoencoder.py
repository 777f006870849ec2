"""Stable Diffusion's autoencoder from the files in which diffusers publishes it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError
from odelt_eqx.interop.named import check_names, listed, read_arrays
from odelt_eqx.nn.autoencoder import Autoencoder, AutoencoderConfig

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called the layers of attention before 0.17, and since."""

FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
"""Settings of a diffusers config that this architecture has only one value for."""

BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D"}
"""The types of block that it is made of."""

READ = {
    "layers_per_block": int,
    "norm_num_groups": int,
    "latent_channels": int,
    "scaling_factor": float,
}
"""Settings that are read where they are given, besides `block_out_channels`."""


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Return the autoencoder in a local file or folder, or one from the Hugging Face hub.

    Args:
        path: a `.safetensors` file of diffusers' `AutoencoderKL`; or a folder with
            `diffusion_pytorch_model.safetensors` in it or in its `vae` subfolder; or
            `hub:OWNER/NAME`, such a folder on the hub, which is downloaded once (needs the extra
            `hub`). Half-precision weights become float32. A `config.json` beside the weights is
            read; without one the sizes are those of the arrays, with 32 groups in the norms and
            latents scaled by 0.18215.

    Raises:
        InputError: there is no such file, or it holds another network: the message lists what is
            missing, left over or of another shape.
    """
    text = str(path)
    folder = _download(text.removeprefix("hub:")) if text.startswith("hub:") else Path(path)
    file = _weights_file(folder) if folder.is_dir() else folder
    weights = {_renamed(name): array for name, array in read_arrays(file).items()}
    beside = file.with_name(CONFIG)
    config = _read_config(beside) if beside.is_file() else _infer_config(weights, file)
    return autoencoder_from_weights(weights, config)


def autoencoder_from_weights(
    weights: Mapping[str, np.ndarray], config: AutoencoderConfig
) -> Autoencoder:
    """Return the `Autoencoder` with the weights that diffusers keeps under these names.

    Args:
        weights: arrays by dotted name, kernels (out, in, height, width).
        config: the shape of the network they belong to.

    Raises:
        InputError: parameters are missing, left over or of another shape; all are listed.
    """
    template = eqx.filter_eval_shape(Autoencoder, config, key=jax.random.key(0))
    slots = {
        jax.tree_util.keystr(path, simple=True, separator="."): slot
        for path, slot in jax.tree_util.tree_leaves_with_path(template)
    }
    check_names(slots, weights, "these are not the weights of this autoencoder")
    arrays = {name: _channels_last(weights[name]) for name in slots}
    wrong = [
        f"{name} {weights[name].shape}"
        for name, slot in slots.items()
        if arrays[name].shape != slot.shape
    ]
    if wrong:
        raise InputError(f"parameters of another shape than the config's: {listed(wrong)}")
    leaves = [jnp.asarray(arrays[name], jnp.float32) for name in slots]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """Return a kernel (out, in, height, width) as (height, width, in, out), others as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _renamed(name: str) -> str:
    """Return the name that an attention layer has today."""
    old = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{old[1]}.{RENAMED[old[2]]}.{old[3]}" if old else name


def _weights_file(folder: Path) -> Path:
    """Return the weights in a folder or in its `vae` subfolder."""
    candidates = [inside / name for inside in (folder, folder / "vae") for name in WEIGHTS]
    for file in candidates:
        if file.is_file():
            return file
    raise InputError(f"there is no {WEIGHTS[0]} in {folder} or in {folder / 'vae'}")


def _download(name: str) -> Path:
    """Return the local copy of what the hub has of a repository's autoencoder."""
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"hub:{name} needs huggingface_hub: pip install 'odelt-eqx[hub]', or give a local file"
        ) from None
    files = (CONFIG, *WEIGHTS[:1])
    try:
        copy = snapshot_download(name, allow_patterns=[*files, *(f"vae/{file}" for file in files)])
    except Exception as error:  # the client's errors share no base class
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"hub:{name} cannot be had: {problem}") from None
    return Path(copy)


def _read_config(path: Path) -> AutoencoderConfig:
    """Return the shape that diffusers' config describes, if it is one of this architecture."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        other = [f"{k} {found[k]!r}" for k, v in FIXED.items() if k in found and found[k] != v]
        blocks = [*found.get("down_block_types", ()), *found.get("up_block_types", ())]
        other += sorted(set(blocks) - BLOCKS)
        config = AutoencoderConfig(
            block_out_channels=tuple(map(int, found["block_out_channels"])),
            **{name: kind(found[name]) for name, kind in READ.items() if name in found},
        )
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no config of an autoencoder: {problem}") from None
    if other:
        raise InputError(f"{path} describes another network than AutoencoderKL: {listed(other)}")
    return config


def _infer_config(weights: Mapping[str, np.ndarray], file: Path) -> AutoencoderConfig:
    """Return the shape of the network whose weights these are."""
    first = re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight")
    blocks = {
        (int(found[1]), int(found[2])): array.shape[0]
        for name, array in weights.items()
        if (found := first.fullmatch(name)) and array.ndim == 4
    }
    widths = tuple(width for (_, block), width in sorted(blocks.items()) if block == 0)
    latent = weights.get("post_quant_conv.weight")
    if not widths or latent is None or latent.ndim != 4:
        raise InputError(
            f"{file} holds no autoencoder of diffusers: no encoder.down_blocks or post_quant_conv"
        )
    return AutoencoderConfig(
        block_out_channels=widths,
        layers_per_block=sum(level == 0 for level, _ in blocks),
        latent_channels=latent.shape[0],
    )
