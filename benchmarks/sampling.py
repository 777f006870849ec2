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
from by_hand import unrolled
from jaxtyping import Array
from limits import matmul_rate
from measure import Report, interleaved, network
from reference import Reference, open_reference

import odelt_eqx as odelt
from odelt_eqx import cli
from odelt_eqx.nn import DiT, DiTConfig
from odelt_eqx.nn.embeddings import image_of, patches, position_table
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.nn.layers import affine
from odelt_eqx.ode.plan import EmbeddedSolver
from odelt_eqx.sampling.flow import Program, peak_bytes


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Args:
        hidden_size: width of a token.
        tokens: tokens of an image, a square number.
        depth: blocks of the network.
        group: blocks per unit of length.
        batches: pictures drawn at once.
        depths: blocks that are run; every one from the group up if none is given.
        steps: Euler steps in time.
        guidance: weights of classifier-free guidance.
        solvers: solvers in time beside Euler, at a tolerance of 1e-2, without a contestant.
        dtype: what blocks compute in.
        rounds: how often each contestant is timed.
        reference: a checkout of the public reference, to be run as well.
        out: file to write the figures to.
    """

    hidden_size: int = 384
    tokens: int = 64
    depth: int = 12
    group: int = 4
    batches: tuple[int, ...] = (1, 8)
    depths: tuple[int, ...] = ()
    steps: tuple[int, ...] = (1, 4, 16)
    guidance: tuple[float, ...] = (1.0,)
    solvers: tuple[EmbeddedSolver, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 7
    reference: Path | None = None
    out: Path | None = None

    @property
    def model(self) -> DiTConfig:
        """The network: latents of 4 channels in patches of 2 x 2."""
        shape = network(self.hidden_size, self.tokens, self.depth, self.group, self.group)
        return dataclasses.replace(shape, dtype=self.dtype)


class Case(NamedTuple):
    """What all contestants draw with.

    Attributes:
        model: the network.
        reference: the reference with the same weights, or None.
        noise: where the pictures start.
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

    @property
    def options(self) -> dict[str, Any]:
        """As `odelt.sample` takes them."""
        return {"depth": self.depth, "guidance": self.guidance}

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
    report = Report(COLUMNS, config, config.out)
    model, reference = networks(config)
    rate = matmul_rate(config.dtype)
    for batch in config.batches:
        noise = jax.random.normal(jax.random.key(0), (batch, *model.config.image_shape))
        labels = jnp.arange(batch) % model.config.num_classes
        for depth in config.depths or model.config.depths:
            for guidance in config.guidance:
                case = Case(model, reference, noise, labels, depth, guidance, rate)
                for row in compare(case, config):
                    report.row(batch, depth, guidance, *row)
    print("", *linearity(report.rows), sep="\n")


def networks(config: Config) -> tuple[DiT, Reference | None]:
    """Return a network whose last layer is not zero, and the reference with the same weights."""
    if config.reference is not None:
        reference = open_reference(config.reference, config.model, batch_size=8).with_final(0.02)
        return reference.network(), reference
    model = DiT(config.model, key=jax.random.key(0))
    final = 0.02 * jax.random.normal(jax.random.key(1), model.final.out.weight.shape)
    return eqx.tree_at(lambda m: m.final.out.weight, model, final), None


def compare(case: Case, config: Config) -> Iterator[tuple[Any, ...]]:
    """Yield what each contestant takes for each plan; all draw the same pictures."""
    model, noise, labels = case.model, case.noise, case.labels
    program = Program(model, noise, labels, time=odelt.FixedSteps(1), **case.options)
    loop, weights = by_hand(model, case.depth, case.guidance), jax.tree.leaves(model)
    loop_bytes = peak_bytes(loop.lower(weights, noise, labels, 1).compile())
    sizes = {"loop by hand": loop_bytes / 2**20, "Program": program.peak_bytes / 2**20}
    for steps in config.steps:
        plan = odelt.FixedSteps(steps)
        calls: dict[str, Callable[[], Array]] = {
            "loop by hand": partial(loop, weights, noise, labels, steps),
            "odelt.sample": partial(odelt.sample, model, noise, labels, time=plan, **case.options),
            "Program": images_of(partial(program, noise, labels, plan, case.guidance)),
        }
        if case.reference is not None:
            sampler = case.reference.sampler(case.depth, steps, case.guidance)
            calls["reference"] = partial(sampler, noise, labels)
        check_alike(calls, 1e-2 if config.dtype == "bfloat16" else 1e-4)
        timings = interleaved(calls, "loop by hand", config.rounds)
        base = timings.get("reference")
        for name, timing in timings.items():
            against = timing.ratio / base.ratio if base else None
            share = steps * case.flops / timing.median / case.matmul_rate
            yield f"{steps} steps", name, timing, timing.ratio, against, share, sizes.get(name)
    for solver in config.solvers:
        plan = odelt.Adaptive(solver=solver, rtol=1e-2, atol=1e-2)
        adaptive = Program(model, noise, labels, time=plan, **case.options)
        call = images_of(partial(adaptive, noise, labels, plan, case.guidance))
        timing = interleaved({solver: call}, solver, config.rounds)[solver]
        size = adaptive.peak_bytes / 2**20
        yield f"{solver} 1e-2", "Program", timing, None, None, None, size


def linearity(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield how far `Program` is from a constant plus a rate, along the steps and the depth."""
    euler = [row for row in rows if row["contestant"] == "Program" and "steps" in row["time"]]
    place = lambda row: {"steps": int(row["time"].split()[0]), "depth": row["depth"]}
    for axis, other in (("steps", "depth"), ("depth", "steps")):
        lines: dict[tuple, list[tuple[int, float]]] = {}
        for row in euler:
            at = place(row)
            line = (row["batch"], row["guidance"], other, at[other])
            lines.setdefault(line, []).append((at[axis], row["ms (range)"]["median"]))
        for (batch, guidance, _, fixed), points in lines.items():
            if len(points) < 3:
                continue
            x, y = np.array(points).T
            rate, constant = np.polyfit(x, y, 1, w=1 / y)
            off = np.abs((constant + rate * x) / y - 1).max()
            yield (
                f"- batch {batch}, guidance {guidance:g}, {other} {fixed}: "
                f"{1e3 * constant:.2f} ms + {1e3 * rate:.3g} ms x {axis}, within {100 * off:.1f} %"
            )


def images_of(call: Callable[[], tuple[Array, Any]]) -> Callable[[], Array]:
    """Return `call` without its statistics."""
    return lambda: call()[0]


def check_alike(calls: Mapping[str, Callable[[], Array]], tolerance: float) -> None:
    """Fail unless all contestants draw the same pictures."""
    pictures = {name: np.asarray(call()) for name, call in calls.items()}
    first = next(iter(pictures.values()))
    for name, found in pictures.items():
        limit = tolerance * np.abs(first).max()
        np.testing.assert_allclose(found, first, rtol=0, atol=limit, err_msg=name)


def by_hand(model: DiT, depth: int, guidance: float) -> Any:
    """Return Euler sampling without diffrax: blocks in a Python loop, time in a `fori_loop`.

    It takes `(weights, noise, labels, steps)`, so that its weights are arguments as ours are.
    """
    structure, config = jax.tree.structure(model), model.config

    def velocity(model: DiT, t: Array, x: Array, index: Array, labels: Array) -> Array:
        condition = jax.vmap(model.time_embedding)(t) + jax.vmap(model.step_embedding)(index)
        condition = condition + model.label_embedding.weight[labels]
        h = affine(model.patch_embedding, jax.vmap(patches, (0, None))(x, config.patch_size))
        h = h + position_table(config.image_size // config.patch_size, config.hidden_size)
        groups = tuple(group.blocks for group in model.groups[: depth // config.depth_group])
        u = unrolled(groups, h, condition + model.length_embedding.weight[depth])
        return jax.vmap(image_of, (0, None))(jax.vmap(model.final)(u, condition), config.patch_size)

    @eqx.filter_jit
    def sample(weights: list[Array], noise: Array, labels: Array, steps: int | Array) -> Array:
        model, size = jax.tree.unflatten(structure, weights), len(noise)
        index = jnp.full(size, jnp.floor(jnp.log2(steps)))

        def step(number: Array, x: Array) -> Array:
            t = jnp.full(size, number / steps)
            if guidance in (0, 1):
                asked = labels if guidance == 1 else jnp.full_like(labels, config.null_label)
                return x + velocity(model, t, x, index, asked) / steps
            twice = lambda a: jnp.concatenate([a, a])
            both = jnp.concatenate([labels, jnp.full_like(labels, config.null_label)])
            v, null = jnp.split(velocity(model, twice(t), twice(x), twice(index), both), 2)
            return x + (null + guidance * (v - null)) / steps

        return jax.lax.fori_loop(0, steps, step, noise)

    return sample


if __name__ == "__main__":
    cli.main(lambda: main(tyro.cli(Config, description=__doc__)))
