"""Where arrays live when there are many devices: one mesh, two layouts of the state."""

from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from odelt_eqx.errors import InputError

Tree = TypeVar("Tree")
Layout = Literal["dp", "fsdp"]

DATA, FSDP = "data", "fsdp"
BATCH = PartitionSpec((DATA, FSDP))
"""The first axis of a batch is dealt out over both axes of the mesh."""
SMALL = 2**12
"""Arrays with fewer entries are not worth a message: each device keeps them whole."""


def make_mesh(layout: Layout) -> Mesh:
    """Return all devices, of every process, as a mesh of data x fsdp.

    The batch is dealt out over both axes. "dp" copies the state to every device; "fsdp" deals out
    parameters, average and optimiser as well (arXiv 1910.02054, stage 3).

    Args:
        layout: which axis holds the devices.
    """
    count = jax.device_count()
    shape = (count, 1) if layout == "dp" else (1, count)
    # diffrax differentiates under automatic axes alone
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raise an InputError if the devices cannot share a batch of that size evenly."""
    if batch_size % mesh.size:
        raise InputError(
            f"batch_size must be a multiple of the {mesh.size} devices; got {batch_size}"
        )


def spread_rows(rows: Tree, mesh: Mesh) -> Tree:
    """Return global arrays whose first axis is dealt out over the devices.

    Args:
        rows: this process's own rows, NumPy arrays: as many as every other's.
        mesh: the devices.
    """
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)


def devices_in_use() -> int:
    """Return over how many devices the mesh of `jax.set_mesh` deals out a batch; 1 without."""
    shape = jax.sharding.get_abstract_mesh().shape
    return shape.get(DATA, 1) * shape.get(FSDP, 1)


def evenly(rows: Tree) -> Tree:
    """Under `jit`, deal out the first axis of arrays over the mesh of `jax.set_mesh`, if any.

    XLA computes on every device what was cut from a batch, unless it is told to deal it out again.
    What has fewer rows than there are devices is left alone.
    """
    count = devices_in_use()
    if count == 1:
        return rows
    spread = lambda x: jax.lax.with_sharding_constraint(x, BATCH) if len(x) >= count else x
    return jax.tree.map(spread, rows)


def whole(tree: Tree) -> Tree:
    """Under `jit`, give all of every array to each device.

    Results can then be looked at in any process, and arguments may have any number of rows: XLA
    would lay them out as they are used, and fail where they do not come out even.
    """
    if devices_in_use() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def kept(state: Tree) -> Tree:
    """Under `jit`, keep a state where it belongs on the mesh of `jax.set_mesh`, if there is one."""
    if devices_in_use() == 1:
        return state
    arrays, rest = eqx.partition(state, eqx.is_array)
    where = state_sharding(arrays, jax.sharding.get_abstract_mesh())
    return eqx.combine(jax.lax.with_sharding_constraint(arrays, where), rest)


def state_sharding(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return a sharding for each array (or its shape) of a state.

    An array is cut along the longest axis that the fsdp axis divides; if there is none, or the
    array is small, every device has all of it.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s.
        mesh: the devices.
    """
    parts = mesh.shape[FSDP]

    def one(leaf: Array | jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not axes or np.prod(leaf.shape) < SMALL:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))

    return jax.tree.map(one, eqx.filter(tree, _has_shape))


def placed(state: Tree, mesh: Mesh) -> Tree:
    """Return `state` with its arrays where they belong, each process having the same ones."""
    arrays, rest = eqx.partition(state, eqx.is_array)
    return eqx.combine(jax.tree.map(_put, arrays, state_sharding(arrays, mesh)), rest)


def _put(leaf: Array, where: NamedSharding) -> Array:
    """Move an array that is on this process's devices, or leave it where it belongs."""
    if leaf.sharding == where:
        return leaf
    return jax.device_put(leaf if jax.process_count() == 1 else np.asarray(leaf), where)


def _has_shape(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
