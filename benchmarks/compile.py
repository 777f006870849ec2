"""Seconds from a network to its first picture and first training step, cold and from the cache.

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
from measure import Report, network
from reference import open_reference

from odelt_eqx import cli
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.nn import DiT, DiTConfig
from odelt_eqx.objective import LengthConsistency
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling import sample
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state, make_train_step

Inputs = tuple[Array, Array]
Call = tuple[Callable[[], Any], Any]
Whose = Literal["ours", "ours, stacked", "reference"]
First = Literal["picture", "step"]
Depth = Literal[12, 28]
GROUPS: dict[Depth, tuple[int, int]] = {12: (4, 4), 28: (8, 12)}
"""Blocks per group, and the smallest depth, of a network."""
OURS = ("ours", "ours, stacked")
TIME_STEPS, STEPS = 4, 1000
COLUMNS = ("depth", "first", "whose", "import s", "build s", "cached build s")
COLUMNS += ("first s", "cached first s", "ratio", "cached ratio")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Args:
        hidden_size: width of a token, a multiple of 64.
        tokens: tokens of an image, a square number.
        batch_size: examples in a batch, a multiple of 8.
        depths: blocks of the networks.
        firsts: what is waited for: 4 Euler steps of sampling at full depth, or a training step of
            shortcut with length consistency.
        rounds: how many pairs of processes each median is taken over.
        reference: checkout of the public reference to compare with.
        out: file for the rows as JSON, or None for none.
        only: measure this alone, in this process, and print it as JSON.
    """

    hidden_size: int = 128
    tokens: int = 64
    batch_size: int = 8
    depths: tuple[Depth, ...] = (12, 28)
    firsts: tuple[First, ...] = ("picture", "step")
    rounds: int = 1
    reference: Path | None = None
    out: Path | None = None
    only: tuple[Depth, First, Whose] | None = None


class Seconds(NamedTuple):
    """What one process measured.

    Attributes:
        imports: processor time until everything was imported.
        build: making the network, its inputs and, for training, its optimiser.
        first: from the call to the picture or the updated weights.
    """

    imports: float
    build: float
    first: float


def our_call(shape: DiTConfig, first: First, inputs: Inputs) -> Call:
    """Return the call whose result is waited for, and the state that it starts from."""
    key = jax.random.key(0)
    if first == "picture":
        model = eqx.filter_jit(DiT)(shape, key=key)
        return partial(sample, model, *inputs, time=FixedSteps(steps=TIME_STEPS)), model
    optimizer = make_optimizer(OptimizerConfig(), STEPS)
    state = eqx.filter_jit(init_state)(shape, optimizer, key)
    step = make_train_step(LengthConsistency(), optimizer, 0.999, STEPS)
    return partial(step, state, *inputs, key), state


def their_call(config: Config, shape: DiTConfig, first: First, inputs: Inputs) -> Call:
    """Return the same of the reference's own code."""
    theirs = open_reference(config.reference or Path(), shape, config.batch_size)
    if first == "picture":
        sampler = theirs.sampler(shape.depth, TIME_STEPS, guidance=1)
        return partial(sampler, *inputs), theirs.state
    return partial(theirs.update, theirs.state, None, *inputs), theirs.state


def here(config: Config, depth: Depth, first: First, whose: Whose) -> Seconds:
    """Measure in this process, which has done nothing yet."""
    imports, began = time.process_time(), time.perf_counter()
    shape = network(config.hidden_size, config.tokens, depth, *GROUPS[depth])
    images = jax.random.normal(jax.random.key(1), (config.batch_size, *shape.image_shape))
    inputs = images, jnp.arange(config.batch_size) % 10
    if whose == "reference":
        call, state = their_call(config, shape, first, inputs)
    else:
        shape = dataclasses.replace(shape, stacked=whose == "ours, stacked")
        call, state = our_call(shape, first, inputs)
    jax.block_until_ready((state, inputs))
    built = time.perf_counter()
    jax.block_until_ready(call())
    return Seconds(imports, built - began, time.perf_counter() - built)


def elsewhere(cache: str, *case: Depth | First | Whose) -> Seconds:
    """Measure in a process of its own, which keeps what it compiles in a folder."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    words = [sys.executable, *sys.argv, "--only", *map(str, case)]
    ended = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Seconds(**json.loads(ended.stdout.splitlines()[-1]))


def medians(rounds: int, *case: Depth | First | Whose) -> tuple[Seconds, Seconds]:
    """Return what processes measured that found the cache empty, and filled."""
    cold, cached = [], []
    for _ in range(rounds):
        with TemporaryDirectory() as cache:
            cold.append(elsewhere(cache, *case))
            cached.append(elsewhere(cache, *case))
    middle = lambda found: Seconds(*map(statistics.median, zip(*found, strict=True)))
    return middle(cold), middle(cached)


def main(config: Config) -> None:
    """Print the table, or what one process of it measured."""
    if config.only is not None:
        print(json.dumps(here(config, *config.only)._asdict()))
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the processes share the device
    report = Report(COLUMNS, config, config.out)
    contestants = ("reference", *OURS) if config.reference else OURS
    for depth, first in itertools.product(config.depths, config.firsts):
        found = {whose: medians(config.rounds, depth, first, whose) for whose in contestants}
        base_cold, base_cached = found[contestants[0]]
        for whose, (cold, cached) in found.items():
            ratios = cold.first / base_cold.first, cached.first / base_cached.first
            seconds = (cold.imports, cold.build, cached.build, cold.first, cached.first)
            report.row(depth, first, whose, *seconds, *ratios)


if __name__ == "__main__":
    cli.main(lambda: main(tyro.cli(Config, description=__doc__)))
