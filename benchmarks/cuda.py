"""The programs of a run as a GPU gets them, lowered for CUDA on any machine.

Attention is one fused call a block where the network computes in bfloat16 and JAX finds cuDNN
(`pip install "jax[cuda12]"`; no GPU is needed).
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from devices import abstract_state, sample, trace
from measure import Output, Report

import odelt_eqx as odelt
from odelt_eqx.config import TrainConfig
from odelt_eqx.entry import run_command
from odelt_eqx.presets import preset
from odelt_eqx.sampling.config import resolve
from odelt_eqx.training.optimizer import ema_decay, make_optimizer
from odelt_eqx.training.step import make_train_step

COLUMNS = (
    *("program", "products of bfloat16", "of float32", "fused attention", "its gradient"),
    *("float64", "callbacks", "transfers", "donated"),
)
NAME = r'@("[^"]+"|[\w.]+)'
PRODUCT = r"stablehlo\.(?:dot_general|convolution).*?: \(tensor<[^>]*?x{}>"
TRANSFER = r"infeed|outfeed|stablehlo\.(?:send|recv)|annotate_device_placement"


@dataclasses.dataclass(frozen=True)
class Config(Output):
    """Whose programs.

    Args:
        preset: the run: its network, objective, optimiser and batch.
        dtype: what blocks compute in.
    """

    preset: Annotated[str, tyro.conf.Positional] = "imagenet-b"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class Contents(NamedTuple):
    """What a program does, counted through its functions; the body of a loop counts once.

    Attributes:
        bfloat16: matrix products and convolutions of bfloat16.
        float32: those of float32.
        attention: fused calls.
        attention_gradient: fused calls of its gradient.
        float64: mentions of a type of 64 bits.
        callbacks: calls of Python.
        transfers: what moves between host and device inside the program.
    """

    bfloat16: int
    float32: int
    attention: int
    attention_gradient: int
    float64: int
    callbacks: int
    transfers: int


def main(config: Config) -> None:
    """Print the table."""
    run, report = preset(config.preset), Report(COLUMNS, config)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, dtype=config.dtype))
    for name, (program, donated) in programs(run).items():
        report.row(name, *contents(program), donated)


def programs(run: TrainConfig) -> dict[str, tuple[str, str]]:
    """Return the text of the step's and of three samplers' programs, and what they donate."""
    state = abstract_state(run)
    data = jnp.zeros((run.batch_size, *run.model.shape))
    labels = None if run.model.condition_type is None else jnp.zeros(run.batch_size, jnp.int32)
    optimizer = make_optimizer(run.optimizer, run.steps)
    step = make_train_step(
        run.objective, optimizer, steps=run.steps, ema=ema_decay(run.optimizer, run.steps)
    )

    found = {"training step": _lower(step, state, data, labels, jax.random.key(0))}
    for time in (
        odelt.FixedSteps(steps=4),
        odelt.FixedSteps(steps=8, solver="ab2"),
        odelt.Adaptive(),
    ):
        how = resolve(state.ema, data, odelt.SampleConfig(time=time), {})
        found[f"sampler, {time.solver}"] = _lower(sample, state.ema, data, labels, how)
    return found


def _lower(function: Callable[..., Any], module: Any, *inputs: Any) -> tuple[str, str]:
    """Return a function's program for CUDA, and how many arrays of its first argument it donates.

    The module and the inputs may be abstract.
    """
    traced = trace(function, module, *inputs)
    arrays = eqx.filter(module, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    donated = max(sum(e.params.get("donated_invars", ())) for e in traced.jaxpr.eqns)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return text, f"{donated} of {len(jax.tree.leaves(arrays))}"


def contents(program: str) -> Contents:
    """Return what a program that was lowered to StableHLO does."""
    _, *parts = re.split(rf"\n  func\.func \w+ {NAME}", program)
    functions = dict(zip(parts[::2], parts[1::2], strict=True))

    def count(pattern: str, name: str = "main") -> int:
        text = functions[name]
        inner = [called for called in re.findall(rf"\bcall {NAME}", text) if called in functions]
        return len(re.findall(pattern, text)) + sum(count(pattern, called) for called in inner)

    fused = r"custom_call @__cudnn\$fmhaSoftmax"
    return Contents(
        bfloat16=count(PRODUCT.format("bf16")),
        float32=count(PRODUCT.format("f32")),
        attention=count(fused + r"\("),
        attention_gradient=count(fused + r"Backward\("),
        float64=count(r"\bf64\b|xf64>"),
        callbacks=count("callback"),
        transfers=count(TRANSFER),
    )


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
