"""What each choice of the DiT block costs, on the network of a preset."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
import tyro
from measure import Output, Report, interleaved

from odelt_eqx.entry import run_command
from odelt_eqx.errors import InputError
from odelt_eqx.nn import DiTConfig
from odelt_eqx.nn.block import PUBLISHED as CHOICES, BlockConfig
from odelt_eqx.presets import preset
from odelt_eqx.sampling import peak_bytes
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state, make_train_step

PUBLISHED = "published"
BLOCKS: dict[str, dict[str, Any]] = {
    PUBLISHED: {},
    "logits over the root of d_head": {"logit_scale": "inverse-sqrt"},
    "and qk-norm": {"logit_scale": "inverse-sqrt", "qk_norm": True},
    "RMSNorm": {"norm": "rms"},
    "RMSNorm with a scale": {"norm": "scaled-rms"},
    "rotary positions": {"rope": True},
    "SwiGLU": {"mlp": "swiglu"},
    "shared adaLN": {"modulation": "shared"},
    "the preset fashion": {
        **{"rope": True, "mlp": "swiglu"},
        **{"norm": "scaled-rms", "logit_scale": "inverse-sqrt"},
    },
    "all": {
        **{"logit_scale": "inverse-sqrt", "qk_norm": True, "norm": "scaled-rms"},
        **{"rope": True, "mlp": "swiglu", "modulation": "shared"},
    },
}
"""What each changes of the network."""
COLUMNS = (
    *("block", "parameters", "training ms (range)", "ratio of training", "ratio of MiB"),
    *("velocity ms (range)", "ratio of velocity"),
)


@dataclasses.dataclass(frozen=True)
class Config(Output):
    """What is compared.

    Args:
        preset: whose network, objective and batch.
        rounds: how often each contestant is measured.
    """

    preset: str = "fashion"
    rounds: int = 15


def main(config: Config) -> None:
    """Print the table."""
    trained = preset(config.preset)
    if not isinstance(trained.model, DiTConfig):
        raise InputError(f"the preset {config.preset} has no transformer; name one such as digits")
    optimizer = make_optimizer(trained.optimizer, trained.steps)
    rng = np.random.default_rng(0)
    data = jax.numpy.asarray(
        rng.standard_normal((trained.batch_size, *trained.model.shape), np.float32)
    )
    labels = jax.numpy.arange(trained.batch_size) % (trained.model.num_classes or 1)
    velocity = eqx.filter_jit(lambda model, x, labels: model(0.5, x, 0, labels))
    steps, velocities, parameters, memory = {}, {}, {}, {}
    fields = [field for field in dataclasses.fields(BlockConfig) if field.name in CHOICES]
    published = dataclasses.replace(trained.model, **{f.name: f.default for f in fields})
    for name, changes in BLOCKS.items():
        network = dataclasses.replace(published, **changes).build(key=jax.random.key(1))
        parameters[name] = sum(leaf.size for leaf in jax.tree.leaves(network))
        state = init_state(network, optimizer)
        step = make_train_step(trained.objective, optimizer, steps=trained.steps)
        inputs = (state, data, labels, jax.random.key(0))
        program = eqx.filter_jit(step).lower(*inputs).compile()
        steps[name], memory[name] = partial(program, *inputs), peak_bytes(program)
        velocities[name] = partial(velocity, network, data, labels)
    report = Report(COLUMNS, config)
    training, sampling = (
        interleaved(calls, PUBLISHED, config.rounds) for calls in (steps, velocities)
    )
    for name in BLOCKS:
        size = memory[name] / memory[PUBLISHED]
        cost, count = (training[name], training[name].ratio, size), f"{parameters[name]:,}"
        report.row(name, count, *cost, sampling[name], sampling[name].ratio)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
