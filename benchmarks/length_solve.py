"""The length ODE as nested diffrax solves, against loops over the same blocks written by hand."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from by_hand import Group, apply, run_euler, run_heun, scan_euler, stack
from jaxtyping import Array
from measure import Comparison, Report, interleaved

from odelt_eqx.entry import run_command
from odelt_eqx.nn.block import DiTBlock
from odelt_eqx.ode import FixedSteps, ODEBlock, Stack, integrate_length

COLUMNS = ("solver", "program", "contestant", "compile s", "ratio of compile s")
COLUMNS += ("ms (range)", "ratio of ms", "MiB", "ratio of MiB")


@dataclasses.dataclass(frozen=True)
class Config(Comparison):
    """Shape of the comparison.

    Args:
        batch_size: examples in the batch.
        depth: blocks, a multiple of `group`.
        group: blocks per unit of length.
        solvers: what takes one step across each group.
    """

    batch_size: int = 8
    depth: int = 12
    group: int = 4
    solvers: tuple[Literal["euler", "heun"], ...] = ("euler", "heun")


def solve(plan: FixedSteps, groups: Sequence[Group | Stack], h: Array, condition: Array) -> Array:
    """Return `u` after one solve per group."""
    length = tuple(map(ODEBlock, groups))
    depth = sum(map(len, groups))
    return integrate_length(length, h, condition, depth, plan)[0]


STACKED = partial(solve, FixedSteps())
LAYOUTS: dict[Callable, Callable] = {
    scan_euler: stack,
    STACKED: lambda groups: tuple(map(Stack.of, groups)),
}
BY_HAND = "by hand, unrolled"
CONTESTANTS: dict[str, dict[str, Callable]] = {
    "euler": {
        BY_HAND: run_euler,
        "by hand, scan over stacked weights": scan_euler,
        "by hand, every block checkpointed": partial(run_euler, run=jax.checkpoint(apply)),
        "diffrax, keep": partial(solve, FixedSteps()),
        "diffrax, recompute": partial(solve, FixedSteps(adjoint="recompute")),
        "diffrax, stacked": STACKED,
    },
    "heun": {
        BY_HAND: run_heun,
        "diffrax, keep": partial(solve, FixedSteps(solver="heun")),
        "diffrax, recompute": partial(solve, FixedSteps(solver="heun", adjoint="recompute")),
    },
}


class Problem:
    """Blocks and inputs of all contestants.

    Args:
        config: their shape.
    """

    def __init__(self, config: Config):
        """Draw weights, tokens and conditions."""
        width, size = config.hidden_size, config.group
        h, c, *keys = jax.random.split(jax.random.key(0), 2 + config.depth)
        blocks = [DiTBlock(config.network((1, 1, 1)), key=k) for k in keys]
        self.groups = tuple(tuple(blocks[i : i + size]) for i in range(0, config.depth, size))
        self.h = jax.random.normal(h, (config.batch_size, config.tokens, width))
        self.condition = jax.random.normal(c, (config.batch_size, width))

    def program(self, kind: str, forward: Callable) -> tuple[Callable, tuple]:
        """Return the solve or the gradient of a loss of it, to be compiled, and its inputs."""
        weights = LAYOUTS.get(forward, tuple)(self.groups)
        leaves, structure = jax.tree.flatten(weights)  # JAX flattens modules slowly

        def run(leaves: list[Array], h: Array, condition: Array) -> Array:
            return forward(jax.tree.unflatten(structure, leaves), h, condition)

        gradient = jax.grad(lambda *inputs: jnp.mean(run(*inputs) ** 2))
        return {"forward": run, "gradient": gradient}[kind], (leaves, self.h, self.condition)

    def comparable(self, result: Array | list[Array]) -> list[Array]:
        """Return `u`, or the gradient of each array of a block, that of all blocks concatenated."""
        leaves, block = jax.tree.leaves(result), jax.tree.leaves(self.groups[0][0])
        if len(leaves) == 1:
            return leaves
        join = lambda i: jnp.concatenate(
            [x.reshape(-1, *block[i].shape) for x in leaves[i :: len(block)]]
        )
        return list(map(join, range(len(block))))


def compare(problem: Problem, solver: str, kind: str, config: Config, report: Report) -> None:
    """Report a row for each contestant, after a check that all compute the same."""
    calls, seconds, sizes = {}, {}, {}
    for name, forward in CONTESTANTS[solver].items():
        function, inputs = problem.program(kind, forward)
        program, seconds[name] = compile_timed(function, inputs)
        calls[name], sizes[name] = partial(program, *inputs), needed_bytes(program)
    expected = problem.comparable(calls[BY_HAND]())
    for name, call in calls.items():
        for ours, theirs in zip(problem.comparable(call()), expected, strict=True):
            tolerance = 1e-4 * np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)
    for name, timing in interleaved(calls, BY_HAND, config.rounds).items():
        times = (seconds[name], seconds[name] / seconds[BY_HAND], timing, timing.ratio)
        report.row(solver, kind, name, *times, sizes[name] / 2**20, sizes[name] / sizes[BY_HAND])


def compile_timed(function: Callable, inputs: tuple) -> tuple[Any, float]:
    """Return a compiled program, and the seconds that tracing and compiling took."""
    jax.clear_caches()
    start = time.perf_counter()
    program = jax.jit(function).lower(*inputs).compile()
    return program, time.perf_counter() - start


def needed_bytes(program: Any) -> int:
    """Return the bytes of a program's inputs and temporaries."""
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def main(config: Config) -> None:
    """Print the table."""
    jax.config.update("jax_enable_compilation_cache", False)  # what compiles is timed
    report, problem = Report(COLUMNS, config), Problem(config)
    compile_timed(*problem.program("forward", STACKED))  # the first in a process takes longer
    for solver in config.solvers:
        for kind in ("forward", "gradient"):
            compare(problem, solver, kind, config, report)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
