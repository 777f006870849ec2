"""Bytes of training state on each device, by layout, from compiled shardings alone."""

import dataclasses
import os
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Args:
        preset: the run.
        devices: virtual CPU devices to lay it out on.
    """

    preset: Annotated[str, tyro.conf.Positional] = "imagenet-xl"
    devices: int = 8


def main(config: Config) -> None:
    """Print the table."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={config.devices}"
    import equinox as eqx
    import jax

    from odelt_eqx.presets import preset
    from odelt_eqx.sharding import make_mesh, placed
    from odelt_eqx.training.optimizer import make_optimizer
    from odelt_eqx.training.step import init_state

    run = preset(config.preset)
    optimizer = make_optimizer(run.optimizer, run.steps)
    print(f"| layout, {config.devices} devices | state, GiB | on each device, GiB | share |")
    print("|---|---|---|---|")
    for layout in ("dp", "fsdp"):
        mesh = make_mesh(layout)

        @eqx.filter_jit
        def init(key: jax.Array, mesh: jax.sharding.Mesh = mesh) -> object:
            return placed(init_state(run.model, optimizer, key), mesh)

        program = init.lower(jax.random.key(0)).compile().compiled
        shapes = eqx.filter_eval_shape(init_state, run.model, optimizer, jax.random.key(0))
        leaves = [leaf for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "dtype")]
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        own = program.memory_analysis().output_size_in_bytes
        print(f"| {layout} | {whole / 2**30:.2f} | {own / 2**30:.2f} | {own / whole:.3f} |")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
