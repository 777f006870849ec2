"""A run's network on every device there is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from odelt_eqx.nn.dit import DiT
from odelt_eqx.sharding import make_mesh, placed
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
