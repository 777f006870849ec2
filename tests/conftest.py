"""Fixtures that several tests share: tiny networks, compiled once per worker."""

import atexit
import dataclasses
import gc
import itertools
import json
import os
import shutil
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

# The tests mostly compile. These reach the processes that tests start, too. With OPTIMISED_PROGRAMS
# set, which CI does for some tests, programs are those that users run.
if not os.environ.get("OPTIMISED_PROGRAMS"):
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    if version("jaxlib").startswith(("0.9.", "0.10.")):  # one that does not know the flag aborts
        faster = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {faster}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one worker compiles serves all
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = (
    "0"  # programs that do not say where they came from
)

import equinox as eqx
import jax
import jaxtyping
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.interop import dit_from_reference
from odelt_eqx.interop.reference import assemble, parameter_slots
from odelt_eqx.training.train import train

gc.set_threshold(200_000, 20, 100)  # tracing allocates much and frees little: a sixth of the time
MAPS = Path("/proc/self/maps")
tests_done = itertools.count(1)


@pytest.fixture(autouse=True)
def _forget_programs():
    """Let go of compiled programs before their memory maps reach the system's usual limit, 65,530.

    A worker compiles thousands of programs; XLA aborts the process when no map is left. To count
    them takes 30 ms.
    """
    yield
    if next(tests_done) % 10 == 0 and MAPS.exists() and MAPS.read_text().count("\n") > 40_000:
        jax.clear_caches()


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


NETWORK = eqx.filter_eval_shape(TINY.build, key=jax.random.key(0))
"""The shape of a tiny network, without weights."""


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of the recorded networks, made from their names.

    The output axis is the last in Flax's slashed names, the first in PyTorch's dotted ones.
    """
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    z = z.astype(np.float32)
    leaf = name.replace("/", ".").split(".")[-1]
    if len(shape) > 1:
        outputs = shape[0] if "." in name else shape[-1]
        return z / np.float32(np.sqrt(np.prod(shape) / outputs))
    if leaf == "var":
        return 1 + np.float32(0.1) * np.abs(z)
    return 1 + np.float32(0.1) * z if leaf in ("scale", "weight") else np.float32(0.02) * z


def assert_matches(ours, reference):
    """Equal to 1e-5 of the largest value."""
    reference = np.asarray(reference)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


class Golden:
    """What the reference computed with one network, and the network itself."""

    def __init__(self, name: str):
        spec = json.loads((GOLDEN / f"{name}.json").read_text())
        self.name, self.shapes = name, spec["shapes"]
        self.config = odelt.DiTConfig(**spec["config"])
        self.model, self.ema = self.network("params"), self.network("params_ema")

    def network(self, prefix: str) -> odelt.DiT:
        weights = {n: golden_weight(f"{prefix}/{n}", shape) for n, shape in self.shapes.items()}
        return dit_from_reference(weights, self.config)

    def pairs(self, recorded, prefix: str, ours: odelt.DiT):
        """Yield our arrays beside those that were recorded under the reference's names."""
        names = {n: recorded[f"{prefix}/{n}"] for n in self.shapes if f"{prefix}/{n}" in recorded}
        for parts, slot in parameter_slots(ours):
            if names.keys() >= set(parts):
                yield slot, assemble(parts, names)

    def recorded(self, kind: str):
        return np.load(GOLDEN / f"{self.name}.{kind}.npz")


@pytest.fixture(
    scope="session",
    params=["small", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("b", "tail"))],
)
def golden(request) -> Golden:
    """One of the recorded networks: `tail` has dead blocks, `small` groups of one block."""
    return Golden(request.param)


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
    snapshot_every=3,
)


@pytest.fixture
def any_types():
    """Arguments of any type, as users pass them: tests check types, users' programs do not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a short run that was never stopped."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(TINY_RUN, run)
    return run
