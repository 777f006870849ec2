"""A training step whose examples leave at their own depth, against the masked computation."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Key
from measure import Report, interleaved, network

from odelt_eqx.config import OptimizerConfig
from odelt_eqx.nn import DiT, DiTConfig
from odelt_eqx.objective import (
    LengthConsistency,
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
)
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling.flow import peak_bytes
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import TrainState, init_state, make_train_step, squared_error


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """The same draws, but the depths are not known while tracing: every block runs for everyone.

    Args:
        objective: makes the draws and the targets.
    """

    objective: LengthConsistency

    @property
    def trains_steps(self) -> bool:
        """As the objective does."""
        return self.objective.trains_steps

    @property
    def taught_by(self) -> TaughtBy:
        """As the objective is."""
        return self.objective.taught_by

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> Any:
        """Draw what the objective draws and hide the depths from the tracer."""
        draws = self.objective.draw(key, batch_size, config, when)
        return jax.tree.map(jnp.asarray, draws)

    def targets(self, draws: Any, images: Array, labels: Array, networks: Networks) -> Targets:
        """Return the objective's targets."""
        return self.objective.targets(draws, images, labels, networks)


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of the comparison.

    Args:
        hidden_size: width of a token.
        tokens: tokens of an image, a square number.
        batch_size: examples in the batch.
        rounds: how often each contestant is timed.
        out: file for the rows as JSON, or None for none.
    """

    hidden_size: int = 256
    tokens: int = 64
    batch_size: int = 24
    rounds: int = 7
    out: Path | None = None


STEPS = 1000
COLUMNS = ("proportions", "part", "examples", "ms (range)", "ratio of ms", "MiB", "ratio of MiB")
PROPORTIONS = {"B, 12 blocks in groups of 4": (12, 4, 4), "XL, 28 in groups of 8": (28, 8, 12)}


def compare(config: Config, proportions: str, report: Report) -> None:
    """Report a row for each part and contestant."""
    model = network(config.hidden_size, config.tokens, *PROPORTIONS[proportions])
    objective = LengthConsistency()
    recompute = dataclasses.replace(model, length=FixedSteps(adjoint="recompute"))
    runs = {
        "masked": (Masked(objective), model),
        "leaving": (objective, model),
        "leaving, recomputing": (objective, recompute),
    }
    image_key, key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(image_key, (config.batch_size, *model.image_shape))
    labels = jnp.arange(config.batch_size) % 10
    optimizer = make_optimizer(OptimizerConfig(), STEPS)
    step_calls, gradient_calls, memory, found = {}, {}, {}, {}
    for name, (goal, shape) in runs.items():
        state = init_state(shape, optimizer, jax.random.key(1))
        inputs = (state, images, labels, key)
        step = compiled(make_train_step(goal, optimizer, 0.999, STEPS), *inputs)
        gradient = compiled(student_gradient(goal), *inputs)
        memory[name] = peak_bytes(step), peak_bytes(gradient)
        step_calls[name] = partial(step, *inputs)
        gradient_calls[name] = partial(gradient, *inputs)
        found[name] = [float(metric) for metric in step(*inputs)[1].values()]
        np.testing.assert_allclose(found[name], found["masked"], rtol=1e-4, err_msg=name)
    for kind, calls in enumerate((step_calls, gradient_calls)):
        part = ("whole step", "student")[kind]
        for name, timing in interleaved(calls, "masked", config.rounds).items():
            size, base = memory[name][kind], memory["masked"][kind]
            sizes = (size / 2**20, size / base)
            report.row(proportions, part, name, timing, timing.ratio, *sizes)


def compiled(function: Callable, *inputs: Any) -> Any:
    """Return the program of `function` for inputs of these shapes."""
    return eqx.filter_jit(function).lower(*inputs).compile()


def student_gradient(objective: Objective) -> Callable:
    """Return the student's part of a training step: forward and backward, its targets given."""

    def gradient(state: TrainState, images: Array, labels: Array, key: Key[Array, ""]) -> DiT:
        model = state.model
        draws = objective.draw(key, len(labels), model.config, TrainingTime(0, STEPS))
        index = jnp.full_like(labels, model.config.flow_index)
        times = jnp.linspace(0.0, 0.9, len(labels))
        targets = Targets(images, times, index, labels, -images, depth=draws.student)
        return eqx.filter_grad(lambda model: jnp.mean(squared_error(model, targets)))(model)

    return gradient


def main(config: Config) -> None:
    """Print the table."""
    report = Report(COLUMNS, config, config.out)
    for proportions in PROPORTIONS:
        compare(config, proportions, report)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
