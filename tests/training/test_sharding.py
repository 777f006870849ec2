"""Layouts over eight virtual devices, in a process of its own: the number is fixed at its start."""

import os
import subprocess
import sys

PROGRAM = """
import dataclasses
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.errors import InputError
from odelt_eqx.objective import LengthConsistency
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.sharding import batch_sharding, make_mesh, placed
from odelt_eqx.training.step import init_state, make_train_step
from tests.conftest import TINY  # turns most optimisations off

config = dataclasses.replace(TINY, hidden_size=64, dropout=0.0)
optimizer = make_optimizer(OptimizerConfig(warmup=1), 10)
images = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
labels = jnp.arange(16) % 10

def run(layout):
    state = init_state(config, optimizer, jax.random.key(0))
    step = make_train_step(LengthConsistency(), optimizer, 0.9, 10)
    batch = (images, labels)
    if layout:
        mesh = make_mesh(layout)
        state = placed(state, mesh)
        batch = jax.device_put(batch, batch_sharding(mesh, 16))
        kept = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
        share = kept / sum(x.nbytes for x in jax.tree.leaves(state))
        assert share == 1 if layout == "dp" else share < 0.25, share
    losses = []
    for i in range(3):
        state, metrics = step(state, *batch, jax.random.key(i))
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return losses, jax.device_get(jax.tree.leaves(eqx.filter(state.ema, eqx.is_array)))

assert jax.device_count() == 8
losses, weights = run(None)
for layout in ("dp", "fsdp"):
    found, other = run(layout)
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    for a, b in zip(weights, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
try:
    batch_sharding(make_mesh("dp"), 12)
except InputError as error:
    assert str(error) == "batch_size must be a multiple of the 8 devices; got 12"
else:
    raise AssertionError
"""


def test_a_step_on_eight_devices_is_that_on_one():
    flags = "--xla_force_host_platform_device_count=8"
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
