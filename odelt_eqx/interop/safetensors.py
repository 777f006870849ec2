"""Weights in the safetensors format: arrays by name, the config as metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import safetensors
import safetensors.numpy

from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import atomic_write
from odelt_eqx.nn import AnyNetworkConfig, DiT, VectorNet, unstacked
from odelt_eqx.serialize import from_dict, to_dict

Module = TypeVar("Module", bound=eqx.Module)


def save_safetensors(model: DiT | VectorNet, path: str | Path) -> None:
    """Write a network: arrays by their path in the unstacked tree, the config as metadata."""
    model = unstacked(model)
    write_module(model, model.config, Path(path), AnyNetworkConfig)


def load_safetensors(path: str | Path) -> DiT | VectorNet:
    """Return the network that `save_safetensors` wrote.

    Raises:
        InputError: there is no such file, or it holds no network of this package.
    """
    build = lambda config, key: config.build(key=key)
    return read_module(Path(path), build, AnyNetworkConfig)


def write_module(module: eqx.Module, config: Any, path: Path, config_type: Any = None) -> None:
    """Write a module: arrays by their path in the tree, its config as metadata.

    `config_type` is the union that the config is a member of, if any.
    """
    arrays = {name: jax.device_get(leaf) for name, leaf in _named_arrays(module)}
    metadata = {"config": json.dumps(to_dict(config, config_type))}
    with atomic_write(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata)


def read_module(path: Path, build: Callable[..., Module], config_type: Any) -> Module:
    """Return the module that `write_module` wrote.

    Args:
        build: `(config, key=key) -> module`.
        config_type: the type of the config, or the union it was written as a member of.

    Raises:
        InputError: there is no such file, or it holds no such module.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            data = json.loads((file.metadata() or {}).get("config", "null"))
            config = from_dict(data, config_type, "its config")
            template = eqx.filter_eval_shape(build, config, key=jax.random.key(0))
            arrays = {name: file.get_tensor(name) for name, _ in _named_arrays(template)}
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no network of this package: {reason(error)}") from None
    if any(arrays[name].shape != leaf.shape for name, leaf in _named_arrays(template)):
        raise InputError(f"{path} holds arrays of other shapes than its config says")
    leaves = iter(map(jax.numpy.asarray, arrays.values()))
    return jax.tree.map(lambda leaf: next(leaves) if _is_array(leaf) else leaf, template)


def _named_arrays(module: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(module)
        if _is_array(leaf)
    ]


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
