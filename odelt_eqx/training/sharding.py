"""Where the arrays of a run live when there are many devices."""

from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from odelt_eqx.errors import InputError

Tree = TypeVar("Tree")
Layout = Literal["dp", "fsdp"]

DATA, FSDP = "data", "fsdp"
SMALL = 2**12
"""Arrays with fewer entries are not worth a message: each device keeps them whole."""


def make_mesh(layout: Layout) -> Mesh:
    """Return all devices as a mesh of data x fsdp.

    The batch is dealt out over both axes. "dp" copies the state to every device; "fsdp" deals out
    parameters, average and optimiser as well (arXiv 1910.02054, stage 3).

    Args:
        layout: which axis holds the devices.
    """
    count = jax.device_count()
    shape = (count, 1) if layout == "dp" else (1, count)
    # diffrax differentiates under automatic axes alone
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Return the sharding of arrays whose first axis is a batch of that size.

    Raises:
        InputError: the devices cannot share the batch evenly.
    """
    if batch_size % mesh.size:
        raise InputError(
            f"batch_size must be a multiple of the {mesh.size} devices; got {batch_size}"
        )
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Return a sharding for each array (or its shape) of a state.

    An array is cut along the longest axis that the fsdp axis divides; if there is none, or the
    array is small, every device has all of it.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s.
        mesh: the devices.
    """
    parts = mesh.shape[FSDP]

    def one(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not axes or np.prod(leaf.shape) < SMALL:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))

    return jax.tree.map(one, eqx.filter(tree, _has_shape))


def placed(state: Tree, mesh: Mesh) -> Tree:
    """Return `state` with its arrays where they belong; under `jit`, keep them there."""
    arrays, rest = eqx.partition(state, eqx.is_array)
    return eqx.combine(eqx.filter_shard(arrays, state_sharding(arrays, mesh)), rest)


def _has_shape(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
