"""The length ODE as nested diffrax solves, against loops over the same blocks written by hand."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from by_hand import Group, apply, scanned, stacked, unrolled, unrolled_heun
from jaxtyping import Array
from measure import Report, interleaved

from odelt_eqx.nn.block import DiTBlock
from odelt_eqx.ode import FixedSteps, ODEBlock, integrate_length
from odelt_eqx.ode.blocks import Stack

COLUMNS = ("solver", "program", "contestant", "compile s", "ratio of compile s")
COLUMNS += ("ms (range)", "ratio of ms", "MiB", "ratio of MiB")


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of the comparison.

    Args:
        hidden_size: width of a token, a multiple of 64.
        tokens: tokens of an image.
        batch_size: examples in the batch.
        depth: blocks, a multiple of `group`.
        group: blocks per unit of length.
        solvers: what takes one step across each group.
        rounds: how often each contestant is timed.
        out: file for the rows as JSON, or None for none.
    """

    hidden_size: int = 256
    tokens: int = 64
    batch_size: int = 8
    depth: int = 12
    group: int = 4
    solvers: tuple[Literal["euler", "heun"], ...] = ("euler", "heun")
    rounds: int = 7
    out: Path | None = None


def solved(plan: FixedSteps, groups: Sequence[Group | Stack], h: Array, condition: Array) -> Array:
    """Return `u` after one solve per group."""
    length = tuple(map(ODEBlock, groups))
    return integrate_length(length, h, condition, len(length), plan)[0]


STACKED = partial(solved, FixedSteps())
LAYOUTS: dict[Callable, Callable] = {
    scanned: stacked,
    STACKED: lambda groups: tuple(map(Stack.of, groups)),
}
BY_HAND = "by hand, unrolled"
CONTESTANTS: dict[str, dict[str, Callable]] = {
    "euler": {
        BY_HAND: unrolled,
        "by hand, scan over stacked weights": scanned,
        "by hand, every block checkpointed": partial(unrolled, run=jax.checkpoint(apply)),
        "diffrax, keep": partial(solved, FixedSteps()),
        "diffrax, recompute": partial(solved, FixedSteps(adjoint="recompute")),
        "diffrax, stacked": STACKED,
    },
    "heun": {
        BY_HAND: unrolled_heun,
        "diffrax, keep": partial(solved, FixedSteps(solver="heun")),
        "diffrax, recompute": partial(solved, FixedSteps(solver="heun", adjoint="recompute")),
    },
}


class Network:
    """Blocks and inputs that every contestant is given.

    Args:
        config: their shape.
    """

    def __init__(self, config: Config):
        """Draw weights, tokens and conditions."""
        width, size = config.hidden_size, config.group
        h, c, *keys = jax.random.split(jax.random.key(0), 2 + config.depth)
        blocks = [DiTBlock(width, width // 64, 4, 0.0, "float32", key=k) for k in keys]
        self.groups = tuple(tuple(blocks[i : i + size]) for i in range(0, config.depth, size))
        self.h = jax.random.normal(h, (config.batch_size, config.tokens, width))
        self.condition = jax.random.normal(c, (config.batch_size, width))

    def program(self, kind: str, forward: Callable) -> tuple[Callable, tuple]:
        """Return the solve or the gradient of a loss of it, to be compiled, and its inputs."""
        weights = LAYOUTS.get(forward, tuple)(self.groups)
        leaves, structure = jax.tree.flatten(weights)  # modules are slow to take apart, lists not

        def solve(leaves: list[Array], h: Array, condition: Array) -> Array:
            return forward(jax.tree.unflatten(structure, leaves), h, condition)

        gradient = jax.grad(lambda *inputs: jnp.mean(solve(*inputs) ** 2))
        return {"forward": solve, "gradient": gradient}[kind], (leaves, self.h, self.condition)

    def comparable(self, found: Array | list[Array]) -> list[Array]:
        """Return `u`, or the gradient of each array of a block, of all blocks one after another."""
        leaves, block = jax.tree.leaves(found), jax.tree.leaves(self.groups[0][0])
        if len(leaves) == 1:
            return leaves
        joined = lambda i: jnp.concatenate(
            [x.reshape(-1, *block[i].shape) for x in leaves[i :: len(block)]]
        )
        return list(map(joined, range(len(block))))


def compare(network: Network, solver: str, kind: str, config: Config, report: Report) -> None:
    """Report a row for each contestant, after a check that all compute the same."""
    jobs = {name: network.program(kind, run) for name, run in CONTESTANTS[solver].items()}
    compiled = {}

    def seconds_to_compile(name: str) -> float:
        jax.clear_caches()
        (function, inputs), began = jobs[name], time.perf_counter()
        compiled[name] = jax.jit(function).lower(*inputs).compile()
        return time.perf_counter() - began

    seconds_to_compile(list(jobs)[-1])  # the first in a process takes longer
    seconds = {name: seconds_to_compile(name) for name in jobs}
    calls = {name: partial(compiled[name], *inputs) for name, (_, inputs) in jobs.items()}
    expected = network.comparable(calls[BY_HAND]())
    for name, call in calls.items():
        for ours, theirs in zip(network.comparable(call()), expected, strict=True):
            tolerance = 1e-4 * np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)
    base = needed_bytes(compiled[BY_HAND])
    for name, timing in interleaved(calls, BY_HAND, config.rounds).items():
        size = needed_bytes(compiled[name])
        times = (seconds[name], seconds[name] / seconds[BY_HAND], timing, timing.ratio)
        report.row(solver, kind, name, *times, size / 2**20, size / base)


def needed_bytes(program: Any) -> int:
    """Return what a program needs for its inputs and all that it computes on the way."""
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def main(config: Config) -> None:
    """Print the table."""
    jax.config.update("jax_enable_compilation_cache", False)  # what compiles is timed
    report, network = Report(COLUMNS, config, config.out), Network(config)
    for solver in config.solvers:
        for kind in ("forward", "gradient"):
            compare(network, solver, kind, config, report)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
