"""Time, memory and examples per second of a training step, beside the public reference's."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array
from limits import matmul_rate
from measure import PUBLISHED, Comparison, Report, Shape, interleaved
from reference import open_reference

from odelt_eqx.config import OptimizerConfig
from odelt_eqx.entry import run_command
from odelt_eqx.nn import DiTConfig
from odelt_eqx.objective import LengthConsistency
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling import peak_bytes
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Config(Comparison):
    """What is measured: shortcut with length consistency.

    Args:
        batch_size: examples in the batch.
        shapes: depth, group and smallest depth of each network.
        dtype: what blocks compute in.
        reference: checkout of the public reference to compare with.
    """

    batch_size: int = 32
    shapes: tuple[Shape, ...] = PUBLISHED
    dtype: Literal["float32", "bfloat16"] = "float32"
    reference: Path | None = None


COLUMNS = (
    *("depth", "group", "contestant", "ms (range)", "examples/s", "ratio"),
    *("of matmul rate", "MiB", "MiB ratio"),
)
OURS = ("keep", "recompute", "stacked", "stacked, recompute")
STEPS = 1000


def main(config: Config) -> None:
    """Print the table; ratios are to the reference if it is there, or else to the first row."""
    report, rate = Report(COLUMNS, config), matmul_rate(config.dtype)
    for shape in config.shapes:
        programs = contestants(config, config.network(shape, config.dtype))
        base = "reference" if "reference" in programs else "keep"
        calls = {name: call for name, (call, _) in programs.items()}
        for name, timing in interleaved(calls, base, config.rounds).items():
            compiled, base_bytes = programs[name][1], peak_bytes(programs[base][1])
            size, work = peak_bytes(compiled), compiled.compiled.cost_analysis()["flops"]
            # XLA counts one round of a loop over blocks.
            share = work / timing.median / rate if name in ("keep", "reference") else None
            examples, sizes = config.batch_size / timing.median, (size / 2**20, size / base_bytes)
            report.row(*shape[:2], name, timing, examples, timing.ratio, share, *sizes)


def contestants(config: Config, model: DiTConfig) -> dict[str, tuple[Callable[[], Array], Any]]:
    """Return, by contestant, a call that takes a step and returns its loss, and its program."""
    images = jax.random.normal(jax.random.key(0), (config.batch_size, *model.shape))
    labels = jnp.arange(config.batch_size) % (model.num_classes or 1)
    programs = {}
    for name in OURS:
        adjoint = "recompute" if "recompute" in name else "keep"
        layout = {"length": FixedSteps(adjoint=adjoint), "stacked": "stacked" in name}
        programs[name] = our_step(dataclasses.replace(model, **layout), images, labels)
    if config.reference is not None:
        programs["reference"] = reference_step(config.reference, model, images, labels)
    return programs


def our_step(model: DiTConfig, images: Array, labels: Array) -> tuple[Callable[[], Array], Any]:
    """Return our step for a fresh network; the state is donated from step to step."""
    optimizer = make_optimizer(OptimizerConfig(), STEPS)
    step = make_train_step(LengthConsistency(), optimizer, steps=STEPS)
    state = init_state(model.build(key=jax.random.key(0)), optimizer)
    batch = (images, labels, jax.random.key(1))
    donating = eqx.filter_jit(lambda batch, state: step(state, *batch), donate="all-except-first")
    program = donating.lower(batch, state).compile()

    def call() -> Array:
        nonlocal state
        state, metrics = program(batch, state)
        return metrics["loss"]

    return call, program


def reference_step(
    path: Path, model: DiTConfig, images: Array, labels: Array
) -> tuple[Callable[[], Array], Any]:
    """Return the reference's step for a fresh network; it does not donate its state."""
    reference = open_reference(path, model, len(images))
    state = reference.state

    @eqx.filter_jit
    def update(state: Any, images: Array, labels: Array) -> Any:
        return reference.update(state, None, images, labels)

    program = update.lower(state, images, labels).compile()

    def call() -> Array:
        nonlocal state
        state, info = program(state, images, labels)
        return info["loss"]

    return call, program


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
