"""A training step whose examples leave at their depth, against the masked computation."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Key
from measure import PUBLISHED, Comparison, Report, Shape, interleaved, use_virtual_devices

from odelt_eqx.config import OptimizerConfig
from odelt_eqx.entry import run_command
from odelt_eqx.network import Network
from odelt_eqx.objective import (
    LengthConsistency,
    Networks,
    Objective,
    Targets,
    TrainingTime,
    WrappingObjective,
)
from odelt_eqx.ode import FixedSteps
from odelt_eqx.parallel import check_batch_size, distribute, make_mesh, place, shard_batch
from odelt_eqx.sampling import peak_bytes
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import TrainState, init_state, make_train_step, squared_error


@dataclasses.dataclass(frozen=True)
class Masked(WrappingObjective):
    """The same draws, but the depths are not known while tracing: every block runs for everyone.

    Args:
        objective: makes the draws and the targets.
    """

    objective: LengthConsistency

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> Any:
        """Draw what the objective draws, the depths hidden from the tracer."""
        draws = self.objective.draw(key, batch_size, network, when)
        return jax.tree.map(jnp.asarray, draws)

    def targets(
        self, draws: Any, data: Array, condition: Array | None, networks: Networks
    ) -> Targets:
        """Return the objective's targets."""
        return self.objective.targets(draws, data, condition, networks)


@dataclasses.dataclass(frozen=True)
class Config(Comparison):
    """Shape of the comparison.

    Args:
        batch_size: examples in the batch, a multiple of the devices.
        shapes: depth, group and smallest depth of each network.
        devices: virtual CPU devices that share the batch; None for those of the machine.
    """

    batch_size: int = 24
    shapes: tuple[Shape, ...] = PUBLISHED
    devices: int | None = None


STEPS = 1000
COLUMNS = ("depth", "group", "part", "examples", "ms (range)")
COLUMNS += ("ratio of ms", "MiB on a device", "ratio of MiB")


def compare(config: Config, shape: Shape, report: Report) -> None:
    """Report a row for each part and contestant."""
    model = config.network(shape)
    recompute = dataclasses.replace(model, length=FixedSteps(adjoint="recompute"))
    contestants = {
        "masked": (Masked(LengthConsistency()), model),
        "leaving": (LengthConsistency(), model),
        "leaving, recomputing": (LengthConsistency(), recompute),
    }
    mesh = make_mesh("dp")
    check_batch_size(config.batch_size, mesh)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((config.batch_size, *model.shape), np.float32)
    labels = np.arange(config.batch_size) % 10
    optimizer = make_optimizer(OptimizerConfig(), STEPS)
    calls, memory, metrics = {"whole step": {}, "student": {}}, {}, {}
    with jax.set_mesh(mesh):
        images, labels = shard_batch((images, labels), mesh)
        for name, (objective, variant) in contestants.items():
            network = variant.build(key=jax.random.key(1))
            state = place(init_state(network, optimizer), mesh)
            inputs = (state, images, labels, jax.random.key(0))
            step = make_train_step(objective, optimizer, steps=STEPS)
            for part, function in {
                "whole step": step,
                "student": student_gradient(objective),
            }.items():
                program = eqx.filter_jit(function).lower(*inputs).compile()
                calls[part][name] = partial(program, *inputs)
                memory[part, name] = peak_bytes(program)
            metrics[name] = list(map(float, calls["whole step"][name]()[1].values()))
            np.testing.assert_allclose(metrics[name], metrics["masked"], rtol=1e-4, err_msg=name)
        for part in calls:
            for name, timing in interleaved(calls[part], "masked", config.rounds).items():
                size, base = memory[part, name], memory[part, "masked"]
                sizes = (size / 2**20, size / base)
                report.row(*shape[:2], part, name, timing, timing.ratio, *sizes)


def student_gradient(objective: Objective) -> Callable:
    """Return the student's part of a training step: forward and backward from given targets."""

    def gradient(state: TrainState, images: Array, labels: Array, key: Key[Array, ""]) -> Network:
        model = state.model
        draws = objective.draw(key, len(labels), model, TrainingTime(0, STEPS))
        index = jnp.full_like(labels, model.flow_index)
        times = jnp.linspace(0.0, 0.9, len(labels))
        targets = Targets(images, times, index, labels, -images, depth=draws.student)

        def loss(model: Network) -> Array:
            return jnp.mean(squared_error(distribute(model), targets))

        return eqx.filter_grad(loss)(model)

    return gradient


def main(config: Config) -> None:
    """Print the table."""
    if config.devices is not None:
        use_virtual_devices(config.devices)
    report = Report(COLUMNS, config)
    for shape in config.shapes:
        compare(config, shape, report)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
