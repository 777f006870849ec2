"""Latency and memory of sampling over batch, depth, steps and guidance, beside loops by hand."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from by_hand import run_euler
from jaxtyping import Array
from limits import matmul_rate
from measure import Comparison, Report, interleaved
from reference import Reference, open_reference

import odelt_eqx as odelt
from odelt_eqx.entry import run_command
from odelt_eqx.nn import DiT, DiTConfig
from odelt_eqx.nn.embeddings import patchify, position_table, unpatchify
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.nn.layers import affine
from odelt_eqx.ode.plan import EmbeddedSolver
from odelt_eqx.sampling import CompiledSampler, SampleConfig, peak_bytes


@dataclasses.dataclass(frozen=True)
class Config(Comparison):
    """What is measured.

    Args:
        depth: blocks of the network.
        group: blocks per unit of length.
        batches: batch sizes.
        depths: blocks that are run; every depth of the network by default.
        steps: Euler steps in time.
        guidance: weights of classifier-free guidance.
        solvers: solvers in time beside Euler, at a tolerance of 1e-2, without a contestant.
        dtype: what blocks compute in.
        reference: checkout of the public reference to compare with.
    """

    hidden_size: int = 384
    depth: int = 12
    group: int = 4
    batches: tuple[int, ...] = (1, 8)
    depths: tuple[int, ...] = ()
    steps: tuple[int, ...] = (1, 4, 16)
    guidance: tuple[float, ...] = (1.0,)
    solvers: tuple[EmbeddedSolver, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    reference: Path | None = None

    @property
    def model(self) -> DiTConfig:
        """The network."""
        return self.network((self.depth, self.group, self.group), self.dtype)


class Case(NamedTuple):
    """What all contestants sample with.

    Attributes:
        model: the network.
        reference: the reference with the same weights, or None.
        noise: where the samples start.
        labels: their classes.
        depth: blocks that are run.
        guidance: weight of classifier-free guidance.
        matmul_rate: operations per second that the machine does at most.
    """

    model: DiT
    reference: Reference | None
    noise: Array
    labels: Array
    depth: int
    guidance: float
    matmul_rate: float

    def config(self, time: odelt.FixedSteps | odelt.Adaptive) -> SampleConfig:
        """Return how the network is run under a time plan."""
        return SampleConfig(time=time, depth=self.depth, guidance=self.guidance)

    @property
    def flops(self) -> int:
        """Operations of one step in time, matrix products alone."""
        halves = 1 if self.guidance in (0, 1) else 2
        return halves * len(self.noise) * velocity_flops(self.model.config, self.depth)


COLUMNS = (
    *("batch", "depth", "guidance", "time", "contestant", "ms (range)"),
    *("x loop", "x reference", "of matmul rate", "MiB"),
)


def main(config: Config) -> None:
    """Print the table."""
    report = Report(COLUMNS, config)
    model, reference = make_networks(config)
    rate = matmul_rate(config.dtype)
    for batch in config.batches:
        noise = jax.random.normal(jax.random.key(0), (batch, *model.shape))
        labels = jnp.arange(batch) % (config.model.num_classes or 1)
        for depth in config.depths or model.depths:
            for guidance in config.guidance:
                case = Case(model, reference, noise, labels, depth, guidance, rate)
                for row in compare(case, config):
                    report.row(batch, depth, guidance, *row)
    print("", *fit_lines(report.rows), sep="\n")


def make_networks(config: Config) -> tuple[DiT, Reference | None]:
    """Return a network whose last layer is not zero, and the reference with the same weights."""
    if config.reference is not None:
        reference = open_reference(config.reference, config.model, batch_size=8).with_final(0.02)
        return reference.network(), reference
    model = DiT(config.model, key=jax.random.key(0))
    final = 0.02 * jax.random.normal(jax.random.key(1), model.final.out.weight.shape)
    return eqx.tree_at(lambda m: m.final.out.weight, model, final), None


def compare(case: Case, config: Config) -> Iterator[tuple[Any, ...]]:
    """Yield the row of each contestant for each plan, after a check that all samples agree."""
    model, noise, labels = case.model, case.noise, case.labels
    compiled = CompiledSampler(model, noise, labels, case.config(odelt.FixedSteps(steps=1)))
    loop, weights = by_hand(model, case.depth, case.guidance), jax.tree.leaves(model)
    loop_bytes = peak_bytes(loop.lower(weights, noise, labels, 1).compile())
    sizes = {"loop by hand": loop_bytes / 2**20, "CompiledSampler": compiled.peak_bytes / 2**20}
    for steps in config.steps:
        options = case.config(odelt.FixedSteps(steps=steps))
        calls: dict[str, Callable[[], Array]] = {
            "loop by hand": partial(loop, weights, noise, labels, steps),
            "odelt.sample": partial(odelt.sample, model, noise, labels, options),
            "CompiledSampler": samples_of(partial(compiled, noise, labels, options)),
        }
        if case.reference is not None:
            sampler = case.reference.sampler(case.depth, steps, case.guidance)
            calls["reference"] = partial(sampler, noise, labels)
        check_samples_agree(calls, 1e-2 if config.dtype == "bfloat16" else 1e-4)
        timings = interleaved(calls, "loop by hand", config.rounds)
        base = timings.get("reference")
        for name, timing in timings.items():
            ratio = timing.ratio / base.ratio if base else None
            share = steps * case.flops / timing.median / case.matmul_rate
            plan = "1 step" if steps == 1 else f"{steps} steps"
            yield plan, name, timing, timing.ratio, ratio, share, sizes.get(name)
    for solver in config.solvers:
        options = case.config(odelt.Adaptive(solver=solver, rtol=1e-2, atol=1e-2))
        adaptive = CompiledSampler(model, noise, labels, options)
        call = samples_of(partial(adaptive, noise, labels, options))
        timing = interleaved({solver: call}, solver, config.rounds)[solver]
        size = adaptive.peak_bytes / 2**20
        yield f"{solver} 1e-2", "CompiledSampler", timing, None, None, None, size


def fit_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield how far latency is from a constant plus a rate times the steps, or the depth."""
    points = [
        ({"steps": int(row["time"].split()[0]), "depth": row["depth"]}, row)
        for row in rows
        if row["contestant"] == "CompiledSampler" and row["time"].endswith((" step", " steps"))
    ]
    for axis, other in (("steps", "depth"), ("depth", "steps")):
        lines: dict[tuple, list[tuple[int, float]]] = {}
        for place, row in points:
            line = (row["batch"], row["guidance"], place[other])
            lines.setdefault(line, []).append((place[axis], row["ms (range)"]["median"]))
        for (batch, guidance, fixed), line in lines.items():
            if len(line) < 3:
                continue
            x, y = np.array(line).T
            rate, constant = np.polyfit(x, y, 1, w=1 / y)
            error = np.abs((constant + rate * x) / y - 1).max()
            yield (
                f"- batch {batch}, guidance {guidance:g}, {other} {fixed}: {1e3 * constant:.2f} ms "
                f"+ {1e3 * rate:.3g} ms x {axis}, within {100 * error:.1f} %"
            )


def samples_of(call: Callable[[], tuple[Array, Any]]) -> Callable[[], Array]:
    """Return `call` without its statistics."""
    return lambda: call()[0]


def check_samples_agree(calls: Mapping[str, Callable[[], Array]], tolerance: float) -> None:
    """Fail unless all contestants return the same samples."""
    samples = {name: np.asarray(call()) for name, call in calls.items()}
    expected = next(iter(samples.values()))
    for name, x in samples.items():
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(x, expected, rtol=0, atol=limit, err_msg=name)


def by_hand(model: DiT, depth: int, guidance: float) -> Any:
    """Return Euler sampling without diffrax: blocks in a Python loop, time in a `fori_loop`.

    It takes `(weights, noise, labels, steps)`, so that its weights are arguments as ours are.
    """
    structure, config = jax.tree.structure(model), model.config

    def velocity(model: DiT, t: Array, x: Array, index: Array, labels: Array) -> Array:
        c = model.condition_embedding(t, index, labels)
        h = affine(model.patch_embedding, jax.vmap(patchify, (0, None))(x, config.patch_size))
        h = h + position_table(config.grid, config.hidden_size)
        groups = tuple(tuple(g.blocks) for g in model.groups[: depth // config.depth_group])
        told = model.length_embedding
        u = run_euler(groups, h, c if told is None else c + told.weight[depth])
        return jax.vmap(unpatchify, (0, None))(jax.vmap(model.final)(u, c), config.patch_size)

    @eqx.filter_jit
    def sample(weights: list[Array], noise: Array, labels: Array, steps: int | Array) -> Array:
        model, size = jax.tree.unflatten(structure, weights), len(noise)
        index, null = jnp.full(size, jnp.floor(jnp.log2(steps))), model.null(size)

        def step(number: Array, x: Array) -> Array:
            t = jnp.full(size, number / steps)
            if guidance in (0, 1):
                return x + velocity(model, t, x, index, labels if guidance else null) / steps
            twice = lambda a: jnp.concatenate([a, a])
            both = jnp.concatenate([labels, null])
            v, v_null = jnp.split(velocity(model, twice(t), twice(x), twice(index), both), 2)
            return x + (v_null + guidance * (v - v_null)) / steps

        return jax.lax.fori_loop(0, steps, step, noise)

    return sample


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
