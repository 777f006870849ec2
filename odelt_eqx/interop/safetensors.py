"""Weights in the safetensors format: arrays by name, and the config beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import equinox as eqx
import jax
import safetensors
import safetensors.numpy

from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.nn.layout import unstacked
from odelt_eqx.serial import converter

Module = TypeVar("Module", bound=eqx.Module)


def save_safetensors(model: DiT, path: str | Path) -> None:
    """Write a network: arrays by their path in the unstacked tree, the config as metadata."""
    model = unstacked(model)
    write_module(model, model.config, Path(path))


def load_safetensors(path: str | Path) -> DiT:
    """Return the network that `save_safetensors` wrote.

    Raises:
        InputError: there is no such file, or it is no network of this package.
    """
    return read_module(Path(path), DiT, DiTConfig)


def write_module(module: eqx.Module, config: Any, path: Path) -> None:
    """Write a module: arrays by their path in the tree, its config as metadata."""
    arrays = {name: jax.device_get(leaf) for name, leaf in _named(module)}
    metadata = {"config": json.dumps(converter().unstructure(config))}
    with replacing(path) as beside:
        safetensors.numpy.save_file(arrays, beside, metadata)


def read_module(path: Path, kind: Callable[..., Module], config_type: type) -> Module:
    """Return the module that `write_module` wrote.

    Args:
        path: the file.
        kind: makes the module from its config and a key.
        config_type: the type of the config.

    Raises:
        InputError: there is no such file, or it holds no such module.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = json.loads((file.metadata() or {}).get("config", "null"))
            config = converter().structure(text, config_type)
            template = eqx.filter_eval_shape(kind, config, key=jax.random.key(0))
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
    leaves = iter(map(jax.numpy.asarray, arrays))
    return jax.tree.map(lambda leaf: next(leaves) if _is_array(leaf) else leaf, template)


def _named(module: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(module)
        if _is_array(leaf)
    ]


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
