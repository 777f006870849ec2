"""Seconds from a network to its first image and first training step, cold and from the cache.

Every measurement is a process of its own: tracing, compiling and the first run. The first process
starts with an empty compilation cache of JAX, the second one with what the first has left there.
"""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array
from measure import PUBLISHED, Comparison, Report, Shape
from reference import open_reference

from odelt_eqx.config import OptimizerConfig
from odelt_eqx.entry import run_command
from odelt_eqx.nn import DiTConfig
from odelt_eqx.objective import LengthConsistency
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling import sample
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state, make_train_step

Inputs = tuple[Array, Array]
Call = tuple[Callable[[], Any], Any]
Contestant = Literal["ours", "ours, stacked", "reference"]
First = Literal["image", "step"]
OURS = ("ours", "ours, stacked")
TIME_STEPS, STEPS = 4, 1000
COLUMNS = ("depth", "first", "contestant", "import s", "build s", "cached build s")
COLUMNS += ("first s", "cached first s", "ratio", "cached ratio")


@dataclasses.dataclass(frozen=True)
class Config(Comparison):
    """What is measured; each median is taken over `rounds` pairs of processes.

    Args:
        batch_size: examples in a batch, a multiple of 8.
        shapes: depth, group and smallest depth of each network.
        firsts: what is waited for: 4 Euler steps of sampling at full depth, or a training step of
            shortcut with length consistency.
        reference: checkout of the public reference to compare with.
        only: measure this alone, of the first shape, in this process, and print it as JSON.
    """

    hidden_size: int = 128
    rounds: int = 1
    batch_size: int = 8
    shapes: tuple[Shape, ...] = PUBLISHED
    firsts: tuple[First, ...] = ("image", "step")
    reference: Path | None = None
    only: tuple[First, Contestant] | None = None


class Seconds(NamedTuple):
    """What one process measured.

    Attributes:
        imports: processor time until everything was imported.
        build: making the network, its inputs and, for training, its optimiser.
        first: from the call to the image or the updated weights.
    """

    imports: float
    build: float
    first: float


def our_call(model: DiTConfig, first: First, inputs: Inputs) -> Call:
    """Return the call whose result is waited for, and the state that it starts from."""
    key = jax.random.key(0)
    if first == "image":
        network = model.build(key=key)
        return partial(sample, network, *inputs, time=FixedSteps(steps=TIME_STEPS)), network
    optimizer = make_optimizer(OptimizerConfig(), STEPS)
    build = lambda key: init_state(model.build(key=key), optimizer)
    state = eqx.filter_jit(build)(key)
    step = make_train_step(LengthConsistency(), optimizer, steps=STEPS)
    return partial(step, state, *inputs, key), state


def reference_call(config: Config, model: DiTConfig, first: First, inputs: Inputs) -> Call:
    """Return the same for the reference's own code."""
    theirs = open_reference(config.reference or Path(), model, config.batch_size)
    if first == "image":
        sampler = theirs.sampler(model.depth, TIME_STEPS, guidance=1)
        return partial(sampler, *inputs), theirs.state
    return partial(theirs.update, theirs.state, None, *inputs), theirs.state


def measure_here(config: Config, first: First, contestant: Contestant) -> Seconds:
    """Measure in this process, which has done nothing yet."""
    imports, start = time.process_time(), time.perf_counter()
    model = config.network(config.shapes[0])
    images = jax.random.normal(jax.random.key(1), (config.batch_size, *model.shape))
    inputs = images, jnp.arange(config.batch_size) % 10
    if contestant == "reference":
        call, state = reference_call(config, model, first, inputs)
    else:
        model = dataclasses.replace(model, stacked=contestant == "ours, stacked")
        call, state = our_call(model, first, inputs)
    jax.block_until_ready((state, inputs))
    built = time.perf_counter()
    jax.block_until_ready(call())
    return Seconds(imports, built - start, time.perf_counter() - built)


def measure_in_process(cache: str, shape: Shape, first: First, contestant: Contestant) -> Seconds:
    """Measure in a new process whose compilation cache is the folder `cache`."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    words = [sys.executable, *sys.argv, "--shapes", *map(str, shape), "--only", first, contestant]
    ended = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Seconds(**json.loads(ended.stdout.splitlines()[-1]))


def medians(
    rounds: int, shape: Shape, first: First, contestant: Contestant
) -> tuple[Seconds, Seconds]:
    """Return what processes measured that found the cache empty, and filled."""
    cold, cached = [], []
    for _ in range(rounds):
        with TemporaryDirectory() as cache:
            cold.append(measure_in_process(cache, shape, first, contestant))
            cached.append(measure_in_process(cache, shape, first, contestant))
    median = lambda measured: Seconds(*map(statistics.median, zip(*measured, strict=True)))
    return median(cold), median(cached)


def main(config: Config) -> None:
    """Print the table, or what one process of it measured."""
    if config.only is not None:
        print(json.dumps(measure_here(config, *config.only)._asdict()))
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the processes share the device
    report = Report(COLUMNS, config)
    contestants = ("reference", *OURS) if config.reference else OURS
    for shape, first in itertools.product(config.shapes, config.firsts):
        results = {name: medians(config.rounds, shape, first, name) for name in contestants}
        base_cold, base_cached = results[contestants[0]]
        for name, (cold, cached) in results.items():
            ratios = cold.first / base_cold.first, cached.first / base_cached.first
            seconds = (cold.imports, cold.build, cached.build, cold.first, cached.first)
            report.row(shape[0], first, name, *seconds, *ratios)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
