"""What many devices hold, compute and send for a run, from its compiled programs alone."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, Key
from measure import use_virtual_devices

from odelt_eqx.condition import Condition
from odelt_eqx.config import TrainConfig
from odelt_eqx.entry import run_command
from odelt_eqx.errors import InputError
from odelt_eqx.network import Network
from odelt_eqx.parallel import BATCH, DATA, FSDP, Layout, make_mesh, state_sharding
from odelt_eqx.presets import preset
from odelt_eqx.sampling import SampleConfig, peak_bytes
from odelt_eqx.sampling.config import resolve
from odelt_eqx.sampling.flow import solve_flow
from odelt_eqx.training.optimizer import ema_decay, make_optimizer
from odelt_eqx.training.step import TrainState, init_state, make_train_step

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
SHAPE = re.compile(r"(f32|s32|u32|bf16|pred)\[([\d,]*)\]")
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
LAYOUTS: tuple[Layout, ...] = ("dp", "fsdp")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Args:
        preset: the run.
        devices: number of virtual CPU devices.
        step: compile a training step as well; large networks take minutes.
        memory: estimate the memory of a device that samples at every depth, and of one that trains,
            from their programs for a CPU: a GPU with fused attention needs less.
        batches: batch sizes of the estimate.
        hidden_size: width of the network; None leaves it as it is.
        batch_size: examples per step; None leaves them as they are.
    """

    preset: Annotated[str, tyro.conf.Positional] = "imagenet-xl"
    devices: int = 8
    step: bool = False
    memory: bool = False
    batches: tuple[int, ...] = (1, 16, 64)
    hidden_size: int | None = None
    batch_size: int | None = None


def main(config: Config) -> None:
    """Print the tables."""
    use_virtual_devices(config.devices)
    run = preset(config.preset)
    if config.hidden_size:
        model = dataclasses.replace(run.model, hidden_size=config.hidden_size)
        run = dataclasses.replace(run, model=model)
    run = dataclasses.replace(run, batch_size=config.batch_size or run.batch_size)
    print(f"| layout, {config.devices} devices | state, GiB | on each device, GiB | share |")
    print("|---|---|---|---|")
    for layout in LAYOUTS:
        whole, part = state_bytes(run, layout)
        print(f"| {layout} | {whole / 2**30:.2f} | {part / 2**30:.2f} | {part / whole:.3f} |")
    if config.memory:
        print_memory(run, config.batches)
    if config.step:
        print_step(run)


def print_memory(run: TrainConfig, batches: Sequence[int]) -> None:
    """Print the GiB that one device needs to sample, and to train, at each batch size."""
    print("\n| GiB of one device | " + " | ".join(f"batch {size}" for size in batches) + " |")
    print("|---" * (len(batches) + 1) + "|")

    def cell(compiled: Callable[[int], Any], size: int) -> str:
        try:
            return f"{peak_bytes(compiled(size)) / 2**30:.2f}"
        except InputError:  # too few examples for the objective
            return ""

    def row(name: str, compiled: Callable[[int], Any]) -> None:
        print(f"| {name} | {' | '.join(cell(compiled, n) for n in batches)} |", flush=True)

    for depth in run.model.depths:
        row(f"sampling, depth {depth}", lambda size: compile_sampler(run, size, depth))  # noqa: B023
    train = lambda size: compile_step(dataclasses.replace(run, batch_size=size), one_device())
    row("training step", train)


def compile_sampler(run: TrainConfig, batch_size: int, depth: int) -> Any:
    """Return the compiled program that samples at a depth on one device."""
    model = abstract_state(run).ema
    noise = jnp.zeros((batch_size, *run.model.shape))
    labels = None if run.model.condition_type is None else jnp.zeros(batch_size, jnp.int32)
    config = resolve(model, noise, SampleConfig(depth=depth), {})
    return trace(sample, model, noise, labels, config).lower().compile()


def sample(model: Network, noise: Array, labels: Condition | None, config: SampleConfig) -> Any:
    """Return samples and what they took, as a server's program does."""
    return solve_flow(*jax.tree.flatten(model), noise, labels, config, None, True)


def trace(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return a function, traced; the arrays of its inputs may be abstract."""
    is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct | Array)
    arrays, rest = eqx.partition(inputs, is_array)

    def run(arrays: Any) -> Any:
        return eqx.filter(function(*eqx.combine(arrays, rest)), eqx.is_array)

    return jax.jit(run).trace(arrays)


def print_step(run: TrainConfig) -> None:
    """Print what the devices compute and send in a training step."""
    alone = compile_step(run, one_device()).cost_analysis()["flops"]
    print(f"\n| a step, batch {run.batch_size} | FLOPs of all over one device's | MB sent |")
    print("|---|---|---|")
    for layout in LAYOUTS:
        program = compile_step(run, make_mesh(layout))
        share = program.cost_analysis()["flops"] * jax.device_count() / alone
        parts = ", ".join(f"{k} {v / 1e6:.1f}" for k, v in sent_bytes(program.as_text()).items())
        print(f"| {layout} | {share:.2f} | {parts} |")


def state_bytes(run: TrainConfig, layout: Layout) -> tuple[int, int]:
    """Return the bytes of a run's state, and of what one device holds of it."""
    optimizer = make_optimizer(run.optimizer, run.steps)

    def build(key: Key[Array, ""]) -> TrainState:
        return init_state(run.model.build(key=key), optimizer)

    key = jax.random.key(0)
    with jax.set_mesh(make_mesh(layout)):
        program = eqx.filter_jit(build).lower(key).compile().compiled
    leaves = jax.tree.leaves(eqx.filter_eval_shape(build, key))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf, "dtype"))
    return whole, program.memory_analysis().output_size_in_bytes


def abstract_state(run: TrainConfig) -> TrainState:
    """Return the state of a run before its first step, shapes and types in place of arrays."""
    optimizer = make_optimizer(run.optimizer, run.steps)
    build = lambda key: init_state(run.model.build(key=key), optimizer)
    return eqx.filter_eval_shape(build, jax.random.key(0))


def one_device() -> Mesh:
    """Return a mesh of the first device alone."""
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((1, 1), (DATA, FSDP), axis_types=axes, devices=jax.devices()[:1])


def compile_step(run: TrainConfig, mesh: Mesh) -> Any:
    """Return the compiled training step on the devices of a mesh."""
    optimizer = make_optimizer(run.optimizer, run.steps)
    step = make_train_step(
        run.objective, optimizer, steps=run.steps, ema=ema_decay(run.optimizer, run.steps)
    )
    with jax.set_mesh(mesh):
        state = abstract_state(run)
        arrays, rest = eqx.partition(state, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        lay_out = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        arrays = jax.tree.map(lay_out, arrays, state_sharding(arrays, mesh))
        rows = lambda *shape, dtype: jax.ShapeDtypeStruct(
            (run.batch_size, *shape), dtype, sharding=NamedSharding(mesh, BATCH)
        )
        data = rows(*run.model.shape, dtype=jnp.float32)
        labels = None if run.model.condition_type is None else rows(dtype=jnp.int32)
        inputs = (eqx.combine(arrays, rest), data, labels, jax.random.key(1))
        return trace(step, *inputs).lower().compile()


def sent_bytes(program: str) -> Counter[str]:
    """Return the bytes of the results of each kind of collective in a program's text."""
    total: Counter[str] = Counter()
    for shapes, kind in COLLECTIVE.findall(program):
        for dtype, sides in SHAPE.findall(shapes):
            size = SIZES[dtype]
            for side in filter(None, sides.split(",")):
                size *= int(side)
            total[kind] += size
    return total


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
