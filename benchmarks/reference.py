"""The public reference, run from a checkout of it in the same process as ours."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from odelt_eqx.errors import InputError
from odelt_eqx.interop.reference import dit_from_reference
from odelt_eqx.nn.dit import DiT, DiTConfig

UNUSED = ("tensorflow", "wandb", "utils.wandb", "utils.stable_vae", "utils.fid", "helper_eval")
"""Modules that its train.py imports and a measurement does not need."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """One network of the reference, as its own train.py makes it.

    Args:
        config: the network's shape.
        state: its train state: parameters, average, optimiser, random key.
        update: its compiled training step, `(state, teacher, images, labels) -> (state, info)`.
    """

    config: DiTConfig
    state: Any
    update: Callable[..., tuple[Any, Any]]

    def network(self) -> DiT:
        """Return our network with the same weights."""
        flat = {name: np.array(leaf) for name, leaf in _named(self.state.params_ema)}
        return dit_from_reference(flat, self.config)

    def with_final(self, scale: float) -> "Reference":
        """Return it with a last layer drawn at random; a fresh one is zero."""
        params = jax.tree.map(jnp.array, dict(self.state.params))
        final = dict(params["FinalLayer_0"])
        for index, layer in enumerate(("Dense_0", "Dense_1")):
            kernel = final[layer]["kernel"]
            drawn = scale * jax.random.normal(jax.random.key(index), kernel.shape)
            final[layer] = {**final[layer], "kernel": drawn}
        params["FinalLayer_0"] = final
        copied = jax.tree.map(jnp.array, params)
        return dataclasses.replace(self, state=self.state.replace(params=params, params_ema=copied))

    def velocity(self, depth: int) -> Callable[..., Array]:
        """Return its compiled velocity at a depth, `(t, x, step_index, labels)`."""
        definition = self.state.model_def.clone(depth_wise=depth)

        @jax.jit
        def call(params: Any, t: Array, x: Array, step_index: Array, labels: Array) -> Array:
            return definition.apply({"params": params}, t, x, (step_index, labels), train=False)

        return partial(call, self.state.params_ema)

    def sampler(self, depth: int, steps: int, guidance: float) -> Callable[[Array, Array], Array]:
        """Return Euler sampling as its inference does it: a Python loop over a compiled velocity.

        Where guidance is neither 0 nor 1 it is two calls a step.
        """
        velocity, null_label = self.velocity(depth), self.config.num_classes or 0

        def run(x: Array, labels: Array) -> Array:
            size = len(x)
            index = jnp.full(size, int(np.log2(steps)), jnp.int32)
            null = jnp.full(size, null_label)
            for number in range(steps):
                t = jnp.full(size, number / steps)
                if guidance in (0, 1):
                    v = velocity(t, x, index, labels if guidance == 1 else null)
                else:
                    v = velocity(t, x, index, null)
                    v = v + guidance * (velocity(t, x, index, labels) - v)
                x = x + v / steps
            return x

        return run


def open_reference(path: Path, config: DiTConfig, batch_size: int) -> Reference:
    """Return the reference's network and training step from a checkout of it.

    Its own train.py is run, silently, up to the point where it would sample. Its modules for data,
    logging and metrics are replaced by empty ones. It was written for JAX 0.5: `jax.tree_map`,
    which JAX has removed since, is restored.

    Args:
        path: the checkout, https://github.com/gudovskiy/odelt.
        config: shape of the network.
        batch_size: examples in a training step.

    Raises:
        InputError: this is no such checkout, or a package that it needs is missing.
    """
    if not (path / "targets_shortcut.py").is_file():
        raise InputError(f"{path} is no checkout of https://github.com/gudovskiy/odelt")
    results: dict[str, Any] = {}

    def keep_results(flags: Any, state: Any, *rest: Any) -> None:
        results.update(state=state, update=rest[6])

    images = np.zeros((batch_size, *config.shape), np.float32)
    labels = np.zeros(batch_size, np.int32)
    stubs = {name: ModuleType(name) for name in UNUSED}
    stubs["tensorflow"].config = _Anything()  # pyright: ignore[reportAttributeAccessIssue]
    for module, names in {
        "utils.wandb": {"setup_wandb": _nothing},
        "utils.stable_vae": {"StableVAE": None},
        "utils.fid": {"fid_from_stats": None},
        "utils.datasets": {"get_dataset": None},
        "helper_eval": {"eval_model": None},
        "helper_inference": {"do_inference": None},
    }.items():
        stubs.setdefault(module, ModuleType(module)).__dict__.update(names)
    jax.tree_map = jax.tree.map  # pyright: ignore[reportAttributeAccessIssue]
    with _checkout(path, stubs), contextlib.redirect_stdout(io.StringIO()):
        try:
            config_dict = importlib.import_module("ml_collections").ConfigDict
            stubs["utils.wandb"].__dict__["default_wandb_config"] = config_dict
            importlib.import_module("targets_shortcut")  # again by the step, as it is traced
            train = importlib.import_module("train")
        except ModuleNotFoundError as error:
            raise InputError(
                f"the reference needs {error.name}: pip install flax einops ml_collections"
            ) from None
        del sys.modules["tensorflow"]  # einops would look for its arrays
        vars(train).update(
            DiT=partial(importlib.import_module("model").DiT, dtype=jnp.dtype(config.dtype)),
            get_dataset=lambda *_: itertools.repeat((images, labels)),
            do_inference=keep_results,
        )
        train.jax.debug.visualize_array_sharding = _nothing
        train.flax.linen.tabulate = lambda *_: _nothing
        train.FLAGS.unparse_flags()
        train.FLAGS(["train.py", "--mode=eval", f"--batch_size={batch_size}"])
        train.FLAGS.model.update(_flags(config))
        train.main(None)
    return Reference(config, results["state"], results["update"])


def _flags(config: DiTConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "patch_size": config.patch_size,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "num_classes": config.num_classes,
        "denoise_timesteps": config.denoise_timesteps,
        "depth": config.depth,
        "depth_min": config.depth_min,
        "depth_group": config.depth_group,
        "depth_wise": config.depth,
        "use_stable_vae": 0,
    }


@contextlib.contextmanager
def _checkout(path: Path, stubs: Mapping[str, ModuleType]) -> Iterator[None]:
    """Enter the checkout and make its modules importable by their bare names."""
    previous = os.getcwd()
    sys.path.insert(0, str(path.resolve()))
    sys.modules.update(stubs)
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(previous)
        sys.path.remove(str(path.resolve()))
        for name in stubs:
            sys.modules.pop(name, None)


def _named(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Array]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _nothing(*_: Any, **__: Any) -> None:
    return None


class _Anything:
    """A stub that has every attribute and accepts every call."""

    def __getattr__(self, name: str) -> "_Anything":
        return self

    def __call__(self, *_: Any, **__: Any) -> "_Anything":
        return self
