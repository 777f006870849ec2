"""Weights in the safetensors format: arrays by name, the config as metadata."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import safetensors

from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import parse_json
from odelt_eqx.interop.hub import download, is_on_hub, upload
from odelt_eqx.interop.named import (
    Module,
    check_finite,
    check_names,
    leaves_by_name,
    read_tensor,
    write_safetensors,
)
from odelt_eqx.nn import AnyNetworkConfig, DiT, VectorNet, unstacked
from odelt_eqx.serialize import from_dict, to_dict

WEIGHTS, CARD = "model.safetensors", "README.md"
"""The files of a network in a repository on the hub."""


def save_safetensors(model: DiT | VectorNet, path: str | Path, card: str | None = None) -> None:
    """Write a network: arrays by their path in the unstacked tree, the config as metadata.

    Args:
        model: the network.
        path: a file, or `hub:OWNER/NAME`, a repository on the Hugging Face Hub (needs the extra
            `hub`), which is made if there is none.
        card: on the hub, the text of the page, Markdown; by default the config and how to sample.

    Raises:
        InputError: the network is not one of this package, or the file or the repository cannot be
            written.

    Example:
        >>> odelt.save_safetensors(odelt.load("runs/digits"), "trained.safetensors")
    """
    if not isinstance(model, DiT | VectorNet):
        raise InputError(
            f"only a DiT or a VectorNet has a config to write; got a {type(model).__name__}: write "
            "its arrays by eqx.tree_serialise_leaves"
        )
    model = unstacked(model)
    if not is_on_hub(path):
        write_module(model, model.config, Path(path), AnyNetworkConfig)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_safetensors(model, Path(folder) / WEIGHTS)
        (Path(folder) / CARD).write_text(card or model_card(model, str(path)), "utf-8")
        upload(Path(folder), path)


def load_safetensors(path: str | Path) -> DiT | VectorNet:
    """Return the network that `save_safetensors` wrote, from a file or from `hub:OWNER/NAME`.

    Raises:
        InputError: there is no such file or repository, or it holds no network of this package.

    Example:
        >>> odelt.save_safetensors(model, "digits.safetensors")
        >>> odelt.load_safetensors("digits.safetensors").config == model.config
        True
    """
    build = lambda config, key: config.build(key=key)
    file = download(path, (WEIGHTS,)) / WEIGHTS if is_on_hub(path) else Path(path)
    return read_module(file, build, AnyNetworkConfig)


def model_card(model: DiT | VectorNet, path: str, sections: str = "") -> str:
    """Return the page of a network on the hub: what it is, how to sample, its config.

    Args:
        model: the network.
        path: its name, `hub:OWNER/NAME`.
        sections: Markdown between how to sample and the config.
    """
    config = json.dumps(to_dict(model.config, AnyNetworkConfig), indent=2)
    depths = ", ".join(map(str, model.depths))
    shallow = f"depth={model.depths[0]}"
    condition, given = "", f"model, noise, {shallow}"
    if model.config.num_classes is not None:
        condition = f"labels = jax.numpy.arange(4) % {model.config.num_classes}\n"
        given = f"model, noise, labels, {shallow}"
    elif model.config.condition_size is not None:
        condition = f"condition = jax.numpy.zeros((4, {model.config.condition_size}))\n"
        given = f"model, noise, condition, {shallow}"
    return f"""---
library_name: odelt-eqx
tags: [flow-matching, jax, equinox]
---
# {path.split("/")[-1]}

A {type(model).__name__} for samples of shape {model.shape}, which runs at depth {depths} (blocks).

```python
import jax
import odelt_eqx as odelt

model = odelt.load_safetensors("{path}")
noise = jax.random.normal(jax.random.key(0), (4, *model.shape))
{condition}samples = odelt.sample({given})
```

On the command line: `odelt convert PRESET {path} runs/model`, then `odelt sample runs/model`.

{sections}## Config

```json
{config}
```
"""


def write_module(module: eqx.Module, config: Any, path: Path, config_type: Any = None) -> None:
    """Write a module: arrays by their path in the tree, its config as metadata.

    `config_type` is the union that the config is a member of, if any.
    """
    arrays = {name: jax.device_get(leaf) for name, leaf in leaves_by_name(module).items()}
    metadata = {"config": json.dumps(to_dict(config, config_type))}
    write_safetensors(path, arrays, metadata)


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
            data = parse_json((file.metadata() or {}).get("config", "null"))
            config = from_dict(data, config_type, "its config")
            if (depth := getattr(config, "depth", 0)) > (count := len(file.keys())):
                raise ValueError(f"its config says {depth} blocks, and it has {count} arrays")
            template = eqx.filter_eval_shape(build, config, key=jax.random.key(0))
            wanted = leaves_by_name(template)
            check_names(wanted, file.keys(), "its arrays are not those of its config")
            for name, leaf in wanted.items():
                if tuple(file.get_slice(name).get_shape()) != leaf.shape:
                    raise ValueError(f"{name} has another shape than its config says")
            arrays = [read_tensor(file, name) for name in wanted]
    except Exception as error:  # damage can break any step
        raise InputError(f"{path} is no network of this package: {reason(error)}") from None
    leaves = [jnp.asarray(a, leaf.dtype) for a, leaf in zip(arrays, wanted.values(), strict=True)]
    return check_finite(jax.tree.unflatten(jax.tree.structure(template), leaves), path)
