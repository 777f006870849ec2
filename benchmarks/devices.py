"""What many devices hold, compute and send for a run, from its compiled programs alone."""

import dataclasses
import re
from collections import Counter
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, Key
from measure import use_virtual_devices

from odelt_eqx.config import TrainConfig
from odelt_eqx.parallel import BATCH, DATA, FSDP, Layout, make_mesh, state_sharding
from odelt_eqx.presets import preset
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
        hidden_size: width of the network; None leaves it as it is.
        batch_size: examples per step; None leaves them as they are.
    """

    preset: Annotated[str, tyro.conf.Positional] = "imagenet-xl"
    devices: int = 8
    step: bool = False
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
    if not config.step:
        return
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


def one_device() -> Mesh:
    """Return a mesh of the first device alone."""
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((1, 1), (DATA, FSDP), axis_types=axes, devices=jax.devices()[:1])


def compile_step(run: TrainConfig, mesh: Mesh) -> Any:
    """Return the compiled training step on the devices of a mesh."""
    optimizer = make_optimizer(run.optimizer, run.steps)
    step = make_train_step(run.objective, optimizer, steps=run.steps, ema=ema_decay(run))
    with jax.set_mesh(mesh):
        build = lambda key: init_state(run.model.build(key=key), optimizer)
        state = eqx.filter_eval_shape(build, jax.random.key(0))
        arrays, rest = eqx.partition(state, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        lay_out = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        arrays = jax.tree.map(lay_out, arrays, state_sharding(arrays, mesh))
        rows = lambda *shape, dtype: jax.ShapeDtypeStruct(
            (run.batch_size, *shape), dtype, sharding=NamedSharding(mesh, BATCH)
        )
        data = rows(*run.model.shape, dtype=jnp.float32)
        labels = None if run.model.condition_type is None else rows(dtype=jnp.int32)

        def step_arrays(arrays: Any, *batch: Any) -> Any:
            return eqx.filter(step(eqx.combine(arrays, rest), *batch), eqx.is_array)

        return jax.jit(step_arrays).lower(arrays, data, labels, jax.random.key(1)).compile()


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
    main(tyro.cli(Config, description=__doc__))
