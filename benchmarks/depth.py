"""What a training step costs for each way to train every depth, on the network of a preset."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
import tyro
from measure import Output, Report, interleaved

from odelt_eqx.entry import run_command
from odelt_eqx.objective import (
    DeepSupervision,
    FlowMatching,
    LengthConsistency,
    Objective,
    SelfAlignment,
    Shortcut,
)
from odelt_eqx.presets import preset
from odelt_eqx.sampling import peak_bytes
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state, make_train_step

PUBLISHED = "length consistency"
WAYS: dict[str, tuple[Objective, dict[str, Any]]] = {
    "flow matching, full depth": (FlowMatching(), {}),
    "shortcut, full depth": (Shortcut(), {}),
    PUBLISHED: (LengthConsistency(), {}),
    "deep supervision": (DeepSupervision(), {"length_embedding": "none"}),
    "deep supervision, told the edge": (DeepSupervision(), {"length_embedding": "edge"}),
    "deep supervision, residual": (
        DeepSupervision(),
        {"length_embedding": "none", "wiring": "residual"},
    ),
    "deep supervision, taught by the average": (
        DeepSupervision(share=0.5, teacher="average"),
        {"length_embedding": "none"},
    ),
    "deep supervision and self-alignment": (
        SelfAlignment(DeepSupervision()),
        {"length_embedding": "none", "projector": True},
    ),
}
"""Objectives with what they change of the network; all but the first two train every depth."""
COLUMNS = ("training", "ms (range)", "ratio of ms", "ratio of MiB", "steps of equal cost")


@dataclasses.dataclass(frozen=True)
class Config(Output):
    """What is compared.

    Args:
        preset: whose network, batch and number of steps.
        rounds: how often each contestant is measured.
    """

    preset: str = "fashion"
    rounds: int = 15


def main(config: Config) -> None:
    """Print the table."""
    trained = preset(config.preset)
    optimizer = make_optimizer(trained.optimizer, trained.steps)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((trained.batch_size, *trained.model.shape), np.float32)
    labels = np.arange(trained.batch_size) % (trained.model.num_classes or 1)
    inputs = (jax.numpy.asarray(data), jax.numpy.asarray(labels), jax.random.key(0))
    calls, memory = {}, {}
    for name, (objective, changes) in WAYS.items():
        network = dataclasses.replace(trained.model, **changes).build(key=jax.random.key(1))
        state = init_state(network, optimizer)
        step = make_train_step(objective, optimizer, steps=trained.steps)
        program = eqx.filter_jit(step).lower(state, *inputs).compile()
        calls[name], memory[name] = partial(program, state, *inputs), peak_bytes(program)
    report = Report(COLUMNS, config)
    for name, timing in interleaved(calls, PUBLISHED, config.rounds).items():
        size = memory[name] / memory[PUBLISHED]
        report.row(name, timing, timing.ratio, size, round(trained.steps / timing.ratio))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
