"""Fixtures that several tests share: tiny networks, compiled once per worker."""

import dataclasses
import json
import zlib
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.interop import dit_from_reference
from odelt_eqx.training.loop import train

jax.config.update("jax_disable_most_optimizations", True)  # the tests mostly compile

GOLDEN = Path(__file__).parent / "golden"

TINY = odelt.DiTConfig(
    image_size=8,
    channels=1,
    patch_size=4,
    hidden_size=16,
    num_heads=2,
    mlp_ratio=2,
    depth=4,
    depth_min=2,
    depth_group=2,
    num_classes=10,
)


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of the recorded networks, made from their names (Flax's, so the last axis is out)."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    z = z.astype(np.float32)
    if len(shape) == 1:
        return np.float32(0.02) * z
    return z / np.float32(np.sqrt(np.prod(shape) / shape[-1]))


@pytest.fixture(scope="session", params=["b", "tail"])
def golden(request):
    """A network with the weights that the reference was recorded with, and what it computed."""
    spec = json.loads((GOLDEN / f"{request.param}.json").read_text())
    weights = {
        name: golden_weight(f"params/{name}", shape) for name, shape in spec["shapes"].items()
    }
    model = dit_from_reference(weights, odelt.DiTConfig(**spec["config"]))
    recorded = {
        kind: np.load(GOLDEN / f"{request.param}.{kind}.npz") for kind in ("forward", "sampling")
    }
    return model, recorded


@pytest.fixture(scope="session")
def model() -> odelt.DiT:
    """A tiny network that is not zero anywhere."""
    fresh = odelt.DiT(TINY, key=jax.random.key(0))
    final = jax.random.normal(jax.random.key(1), fresh.final.out.weight.shape)
    return eqx.tree_at(lambda m: m.final.out.weight, fresh, final)


TINY_RUN = TrainConfig(
    model=dataclasses.replace(TINY, dropout=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=2),
    steps=6,
    batch_size=16,
    log_every=2,
    eval_every=3,
    save_every=3,
)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a short run that was never stopped."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(TINY_RUN, run)
    return run
