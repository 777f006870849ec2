"""Weights in the safetensors format: arrays by name, and the config beside them."""

import json
from pathlib import Path
from typing import Any

import cattrs
import equinox as eqx
import jax
import safetensors
import safetensors.numpy

from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.serial import converter


def save_safetensors(model: DiT, path: str | Path) -> None:
    """Write a network: arrays by their path in the tree, the config as metadata."""
    arrays = {name: jax.device_get(leaf) for name, leaf in _named(model)}
    metadata = {"config": json.dumps(converter().unstructure(model.config))}
    with replacing(Path(path)) as beside:
        safetensors.numpy.save_file(arrays, beside, metadata)


def load_safetensors(path: str | Path) -> DiT:
    """Return the network that `save_safetensors` wrote.

    Raises:
        InputError: there is no such file, or it is no network of this package.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = json.loads((file.metadata() or {}).get("config", "null"))
            config = converter().structure(text, DiTConfig)
            template = eqx.filter_eval_shape(DiT, config, key=jax.random.key(0))
            arrays = [file.get_tensor(name) for name, _ in _named(template)]
    except (
        safetensors.SafetensorError,
        ValueError,
        TypeError,
        cattrs.BaseValidationError,
    ) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no network of this package: {problem}") from None
    shapes = [leaf.shape for _, leaf in _named(template)]
    if [array.shape for array in arrays] != shapes:
        raise InputError(f"{path} holds arrays of other shapes than its config says")
    return jax.tree.unflatten(jax.tree.structure(template), map(jax.numpy.asarray, arrays))


def _named(model: DiT) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    ]
