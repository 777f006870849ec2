"""Time, memory and examples per second of a training step, beside the public reference's update."""

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
from measure import Report, interleaved, network
from reference import open_reference

from odelt_eqx import cli
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.nn import DiTConfig
from odelt_eqx.objective import LengthConsistency
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling.flow import peak_bytes
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured: shortcut with length consistency.

    Args:
        hidden_size: width of a token.
        tokens: tokens of an image, a square number.
        batch_size: examples in the batch.
        shapes: depth, group and smallest depth of each network.
        dtype: what blocks compute in.
        rounds: how often each contestant is timed.
        reference: a checkout of the public reference, to be run as well.
        out: file to write the figures to.
    """

    hidden_size: int = 256
    tokens: int = 64
    batch_size: int = 32
    shapes: tuple[tuple[int, int, int], ...] = ((12, 4, 4), (28, 8, 12))
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 7
    reference: Path | None = None
    out: Path | None = None


COLUMNS = (
    *("depth", "group", "contestant", "ms (range)", "examples/s", "ratio"),
    *("of matmul rate", "MiB", "MiB ratio"),
)
OURS = ("keep", "recompute", "stacked", "stacked, recompute")
STEPS = 1000


def main(config: Config) -> None:
    """Print the table; ratios are to the reference if it is there, or else to the first row."""
    report, rate = Report(COLUMNS, config, config.out), matmul_rate(config.dtype)
    for depth, group, depth_min in config.shapes:
        shape = network(config.hidden_size, config.tokens, depth, group, depth_min)
        model = dataclasses.replace(shape, dtype=config.dtype)
        programs = contestants(config, model)
        base = "reference" if "reference" in programs else "keep"
        calls = {name: call for name, (call, _) in programs.items()}
        for name, timing in interleaved(calls, base, config.rounds).items():
            compiled, base_bytes = programs[name][1], peak_bytes(programs[base][1])
            size, work = peak_bytes(compiled), compiled.compiled.cost_analysis()["flops"]
            # XLA counts one round of a loop over blocks.
            share = work / timing.median / rate if name in ("keep", "reference") else None
            examples = config.batch_size / timing.median
            told = (examples, timing.ratio, share, size / 2**20, size / base_bytes)
            report.row(depth, group, name, timing, *told)


def contestants(config: Config, model: DiTConfig) -> dict[str, tuple[Callable[[], Array], Any]]:
    """Return a call that makes one step and returns its loss, and the program, of each."""
    images = jax.random.normal(jax.random.key(0), (config.batch_size, *model.image_shape))
    labels = jnp.arange(config.batch_size) % model.num_classes
    found = {}
    for name in OURS:
        adjoint = "recompute" if "recompute" in name else "keep"
        layout = {"length": FixedSteps(adjoint=adjoint), "stacked": "stacked" in name}
        found[name] = ours(dataclasses.replace(model, **layout), images, labels)
    if config.reference is not None:
        found["reference"] = theirs(config.reference, model, images, labels)
    return found


def ours(model: DiTConfig, images: Array, labels: Array) -> tuple[Callable[[], Array], Any]:
    """Return our step of a fresh network; the state is donated from step to step."""
    optimizer = make_optimizer(OptimizerConfig(), STEPS)
    step = make_train_step(LengthConsistency(), optimizer, 0.999, STEPS)
    state = init_state(model, optimizer, jax.random.key(0))
    batch = (images, labels, jax.random.key(1))
    donating = eqx.filter_jit(lambda batch, state: step(state, *batch), donate="all-except-first")
    program = donating.lower(batch, state).compile()

    def call() -> Array:
        nonlocal state
        state, metrics = program(batch, state)
        return metrics["loss"]

    return call, program


def theirs(
    path: Path, model: DiTConfig, images: Array, labels: Array
) -> tuple[Callable[[], Array], Any]:
    """Return the reference's update of a fresh network; it keeps the old state while it runs."""
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
    cli.main(lambda: main(tyro.cli(Config, description=__doc__)))
