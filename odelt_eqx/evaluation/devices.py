"""A run's network on every device there is."""

import platform
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.nn.dit import DiT
from odelt_eqx.sharding import make_mesh, placed, whole
from odelt_eqx.training.checkpoint import load, run_config


@contextmanager
def on_all_devices(run: Path) -> Iterator[DiT]:
    """Give the averaged weights of a run, laid out as it was trained, over all devices.

    What is computed with them inside is dealt out over the devices by its first axis.

    Args:
        run: run folder.

    Raises:
        InputError: the folder is no run with a checkpoint.
    """
    mesh = make_mesh(run_config(run).sharding)
    with jax.set_mesh(mesh):
        yield placed(load(run), mesh)


def device() -> str:
    """Return what the devices in use are, in words."""
    first = jax.devices()[0]
    kind = platform.machine() if first.platform == "cpu" else first.device_kind
    return f"{len(jax.devices())} x {first.platform} ({kind})"


def fingerprint(model: DiT) -> str:
    """Return what tells these weights from any others, on whatever devices they lie."""

    @eqx.filter_jit
    def digits(model: DiT) -> jax.Array:
        sums = []
        for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)):
            bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).ravel()
            odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
            sums.append(jnp.sum(bits * odd, dtype=jnp.uint32))
        return whole(jnp.stack(sums))

    return f"{zlib.crc32(np.asarray(digits(model)).tobytes()):08x}"
