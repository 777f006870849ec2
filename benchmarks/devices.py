"""What many devices hold, compute and send for a run, from its compiled programs alone."""

import dataclasses
import os
import re
from collections import Counter
from typing import Annotated, Any

import tyro

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
SHAPE = re.compile(r"(f32|s32|u32|bf16|pred)\[([\d,]*)\]")
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Args:
        preset: the run.
        devices: virtual CPU devices to lay it out on.
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
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={config.devices}"
    import jax

    from odelt_eqx.presets import preset
    from odelt_eqx.sharding import make_mesh

    run = preset(config.preset)
    if config.hidden_size:
        model = dataclasses.replace(run.model, hidden_size=config.hidden_size)
        run = dataclasses.replace(run, model=model)
    run = dataclasses.replace(run, batch_size=config.batch_size or run.batch_size)
    print(f"| layout, {config.devices} devices | state, GiB | on each device, GiB | share |")
    print("|---|---|---|---|")
    for layout in ("dp", "fsdp"):
        whole, own = state_bytes(run, layout)
        print(f"| {layout} | {whole / 2**30:.2f} | {own / 2**30:.2f} | {own / whole:.3f} |")
    if not config.step:
        return
    alone = compiled_step(run, one_device()).cost_analysis()["flops"]
    print(f"\n| a step, batch {run.batch_size} | FLOPs of all over one device's | MB sent |")
    print("|---|---|---|")
    for layout in ("dp", "fsdp"):
        program = compiled_step(run, make_mesh(layout))
        share = program.cost_analysis()["flops"] * jax.device_count() / alone
        parts = ", ".join(f"{k} {v / 1e6:.1f}" for k, v in sent_bytes(program.as_text()).items())
        print(f"| {layout} | {share:.2f} | {parts} |")


def state_bytes(run: Any, layout: Any) -> tuple[int, int]:
    """Return the bytes of a run's state, and of what one device keeps of it."""
    import equinox as eqx
    import jax

    from odelt_eqx.sharding import make_mesh
    from odelt_eqx.training.optimizer import make_optimizer
    from odelt_eqx.training.step import init_state

    arguments = (run.model, make_optimizer(run.optimizer, run.steps), jax.random.key(0))
    with jax.set_mesh(make_mesh(layout)):
        program = eqx.filter_jit(init_state).lower(*arguments).compile().compiled
    leaves = jax.tree.leaves(eqx.filter_eval_shape(init_state, *arguments))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf, "dtype"))
    return whole, program.memory_analysis().output_size_in_bytes


def one_device() -> Any:
    """Return a mesh of the first device alone."""
    import jax
    from jax.sharding import AxisType

    from odelt_eqx.sharding import DATA, FSDP

    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((1, 1), (DATA, FSDP), axis_types=axes, devices=jax.devices()[:1])


def compiled_step(run: Any, mesh: Any) -> Any:
    """Return the compiled training step on the devices of a mesh."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from odelt_eqx.sharding import BATCH, state_sharding
    from odelt_eqx.training.optimizer import make_optimizer
    from odelt_eqx.training.step import init_state, make_train_step

    optimizer = make_optimizer(run.optimizer, run.steps)
    step = make_train_step(run.objective, optimizer, run.optimizer.ema, run.steps)
    with jax.set_mesh(mesh):
        state = eqx.filter_eval_shape(init_state, run.model, optimizer, jax.random.key(0))
        arrays, rest = eqx.partition(state, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        laid_out = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        arrays = jax.tree.map(laid_out, arrays, state_sharding(arrays, mesh))
        rows = lambda *shape, dtype: laid_out(
            jax.ShapeDtypeStruct((run.batch_size, *shape), dtype), NamedSharding(mesh, BATCH)
        )
        images = rows(*run.model.image_shape, dtype=jnp.float32)
        labels = rows(dtype=jnp.int32)

        def stepped(arrays: Any, *batch: Any) -> Any:
            return eqx.filter(step(eqx.combine(arrays, rest), *batch), eqx.is_array)

        return jax.jit(stepped).lower(arrays, images, labels, jax.random.key(1)).compile()


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
