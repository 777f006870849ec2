"""Devices and processes: the mesh, how arrays are laid out on it, and who writes.

A run uses every device of every process. The batch is split over all of them; the state is copied
to each ("dp") or split as well ("fsdp"). Everything else in this package computes on arrays and
need not know: compiled programs call `constrain_batch`, `replicate`, `constrain_state` and
`distribute` at their edges, all of which do nothing on one device.
"""

import dataclasses
import platform
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from odelt_eqx.condition import ConditionType
from odelt_eqx.errors import InputError, reason
from odelt_eqx.inputs import Inputs
from odelt_eqx.network import Network
from odelt_eqx.ode.length import LengthStats
from odelt_eqx.ode.plan import Plan

Tree = TypeVar("Tree")
Layout = Literal["dp", "fsdp"]

DATA, FSDP = "data", "fsdp"
BATCH = PartitionSpec((DATA, FSDP))
"""The first axis of a batch is split over both axes of the mesh."""
SMALL = 2**12
"""Arrays with fewer entries are replicated: they are not worth a message."""
MESSAGE_BYTES = 4096


def make_mesh(layout: Layout) -> Mesh:
    """Return all devices, of every process, as a mesh of data x fsdp.

    "dp" copies the state to every device; "fsdp" splits parameters, average and optimiser as well
    (arXiv 1910.02054, stage 3). The batch is split over both axes.

    Example:
        >>> mesh = odelt.make_mesh("fsdp")
        >>> dict(mesh.shape)
        {'data': 1, 'fsdp': 1}
    """
    count = jax.device_count()
    shape = (count, 1) if layout == "dp" else (1, count)
    # diffrax differentiates under automatic axes only.
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_size() -> int:
    """Return the number of devices in the mesh of `jax.set_mesh`; 1 without one of `make_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = {DATA, FSDP} <= set(mesh.axis_names) and set(mesh.axis_types) == {AxisType.Auto}
    return mesh.shape[DATA] * mesh.shape[FSDP] if ours else 1


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raise an InputError unless the devices can share a batch evenly."""
    if batch_size % mesh.size:
        raise InputError(
            f"batch_size must be a multiple of the {mesh.size} devices; got {batch_size}"
        )


def shard_batch(rows: Tree, mesh: Mesh) -> Tree:
    """Return global arrays whose first axis is split over the devices.

    `rows` are NumPy arrays, the rows of this process; every process has the same number.
    """
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)


def constrain_batch(batch: Tree) -> Tree:
    """Under `jit`, split the first axis of every array over the mesh.

    XLA otherwise computes on every device what was sliced or gathered from a batch. An array with
    fewer rows than there are devices is left alone.
    """
    count = mesh_size()
    if count == 1:
        return batch
    split = lambda x: jax.lax.with_sharding_constraint(x, BATCH) if len(x) >= count else x
    return jax.tree.map(split, batch)


def replicate(tree: Tree) -> Tree:
    """Under `jit`, copy every array to each device.

    Results can then be read in any process, and arguments may have any number of rows: XLA would
    lay them out as they are used, and fail where the devices cannot share them evenly.
    """
    if mesh_size() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def constrain_state(state: Tree) -> Tree:
    """Under `jit`, lay a training state out as `state_sharding` says; elsewhere `place` does."""
    arrays, rest = eqx.partition(state, eqx.is_array)
    if mesh_size() == 1 or not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays)):
        return state
    sharding = state_sharding(arrays, jax.sharding.get_abstract_mesh())
    return eqx.combine(jax.lax.with_sharding_constraint(arrays, sharding), rest)


def state_sharding(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return a sharding for each array, or `jax.ShapeDtypeStruct`, of a state.

    An array is split along the longest axis that the fsdp axis divides; if there is none, or the
    array is small, it is replicated.
    """
    parts = mesh.shape[FSDP]

    def shard(leaf: Array | jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not axes or np.prod(leaf.shape) < SMALL:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))

    has_shape = lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    return jax.tree.map(shard, eqx.filter(tree, has_shape))


def place(state: Tree, mesh: Mesh) -> Tree:
    """Return `state` laid out on the mesh; every process has the same values.

    Example:
        >>> mesh = odelt.make_mesh("dp")
        >>> with jax.set_mesh(mesh):
        ...     images = odelt.sample(odelt.place(model, mesh), noise, labels)
        >>> images.shape
        (10, 8, 8, 1)
    """
    arrays, rest = eqx.partition(state, eqx.is_array)

    def move(leaf: Array, sharding: NamedSharding) -> Array:
        if leaf.sharding == sharding:
            return leaf
        return jax.device_put(leaf if jax.process_count() == 1 else np.asarray(leaf), sharding)

    return eqx.combine(jax.tree.map(move, arrays, state_sharding(arrays, mesh)), rest)


def deal(
    depth: Int[np.ndarray, " batch"], parts: int
) -> tuple[Int[np.ndarray, "parts size"], Bool[np.ndarray, "parts size"]]:
    """Reorder a batch by depth so that every part gets the same mix.

    Every part has the same depths in the same places, the deepest first, so that one program that
    knows them serves all parts. Where the parts cannot share the examples of a depth evenly, some
    of these appear twice, and the second does not count: fewer than there are parts.

    Returns:
        The examples of each part, and which of them count.
    """
    rows, counted = [], []
    for value in np.unique(depth)[::-1]:
        members = np.flatnonzero(depth == value)
        size = len(members) + -len(members) % parts
        rows.append(np.resize(members, size).reshape(parts, -1))
        counted.append((np.arange(size) < len(members)).reshape(parts, -1))
    return np.concatenate(rows, axis=1), np.concatenate(counted, axis=1)


def undeal(
    rows: Int[np.ndarray, "parts size"], counted: Bool[np.ndarray, "parts size"]
) -> Int[np.ndarray, " batch"]:
    """Return where each example is among the flattened rows of `deal`."""
    positions = np.flatnonzero(counted)
    inverse = np.empty(len(positions), int)
    inverse[rows.ravel()[positions]] = positions
    return inverse


class DistributedNetwork(Network):
    """A network that lays every batch out over the mesh before it is evaluated.

    A batch whose depths are known while tracing is dealt: every device gets the same mix of depths,
    and an example that leaves at its depth is cut off where it is.
    """

    network: Network

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.network.shape

    @property
    def condition_type(self) -> ConditionType | None:  # noqa: D102
        return self.network.condition_type

    @property
    def depths(self) -> tuple[int, ...]:  # noqa: D102
        return self.network.depths

    @property
    def flow_index(self) -> int:  # noqa: D102
        return self.network.flow_index

    @property
    def length(self) -> Plan:  # noqa: D102
        return self.network.length

    @property
    def anytime(self) -> bool:  # noqa: D102
        return self.network.anytime

    @property
    def projector(self) -> Any:  # noqa: D102
        return getattr(self.network, "projector", None)

    def velocity(self, inputs: Inputs) -> tuple[Float[Array, "*batch_shape"], LengthStats]:
        """Return the velocity, each device's part of the batch computed on that device."""
        batch = (inputs.t, inputs.x, inputs.step_index, inputs.condition, inputs.keys)
        batch = (*batch, inputs.guidance)
        depth, back = inputs.depth, None
        if isinstance(depth, np.ndarray):
            rows, counted = deal(depth, mesh_size())
            order, back = rows.ravel(), undeal(rows, counted)
            batch, depth = jax.tree.map(lambda leaf: leaf[order], batch), depth[order]
        t, x, step_index, condition, keys, guidance = constrain_batch(batch)
        length, tolerance, hidden = inputs.length, inputs.tolerance, inputs.hidden
        result = self.network.velocity(
            Inputs(t, x, step_index, condition, depth, length, keys, tolerance, guidance, hidden)
        )
        return result if back is None else jax.tree.map(lambda leaf: leaf[back], result)


def distribute(network: Network) -> Network:
    """Return `network` with its batches laid out over the mesh; itself on one device."""
    if mesh_size() == 1:
        return network
    return DistributedNetwork(network=network)  # pyright: ignore[reportCallIssue]


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process finds the others of a distributed run; single-process by default.

    Args:
        cluster: the environment says: SLURM, Open MPI, Kubernetes or a TPU pod started it.
        coordinator: address of process 0, HOST:PORT, where the environment does not say.
        count: number of processes.
        index: index of this one, from 0.
    """

    cluster: bool = False
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        """Check that exactly one of the two ways is used."""
        given = [value is not None for value in (self.coordinator, self.count, self.index)]
        if any(given) and (self.cluster or not all(given)):
            raise InputError(
                "give either processes.cluster or all of processes.coordinator, processes.count "
                "and processes.index"
            )

    def join(self) -> None:
        """Wait for the other processes, or raise an InputError; before anything is computed."""
        if not (self.cluster or self.coordinator):
            return
        try:
            jax.distributed.initialize(self.coordinator, self.count, self.index)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the other processes were not found: {reason(error)}") from error


def is_main_process() -> bool:
    """Whether this is process 0, which writes files and prints for all."""
    return jax.process_index() == 0


def on_main_process(action: Callable[[], object]) -> None:
    """Run `action` in process 0 while the others wait; all raise its InputError if it fails."""
    problem = ""
    if is_main_process():
        try:
            action()
        except InputError as error:
            problem = str(error)
    if jax.process_count() > 1:
        text = problem.encode()[:MESSAGE_BYTES]
        message = np.zeros(MESSAGE_BYTES, np.uint8)
        message[: len(text)] = np.frombuffer(text, np.uint8)
        problem = broadcast(message).tobytes().rstrip(b"\0").decode(errors="replace")
    if problem:
        raise InputError(problem)


def broadcast(numbers: np.ndarray) -> np.ndarray:
    """Return process 0's numbers in every process; all must call it with the same shape."""
    if jax.process_count() == 1:
        return numbers
    return np.asarray(multihost_utils.broadcast_one_to_all(numbers))


def max_over_processes(number: int) -> int:
    """Return the largest number over the processes; all must call it."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.asarray(number))))


def describe_devices() -> str:
    """Return the number and kind of the devices in use, as text."""
    first = jax.devices()[0]
    kind = platform.machine() if first.platform == "cpu" else first.device_kind
    return f"{len(jax.devices())} x {first.platform} ({kind})"
