"""What the solvers of the time axis make of a trained run, at equal network evaluations."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array
from measure import Output, Report

from odelt_eqx.data.source import read_batches, sample_indices
from odelt_eqx.entry import run_command
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels
from odelt_eqx.evaluation.measure import class_count, condition_of, inputs
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.network import Network
from odelt_eqx.ode.plan import SOLVERS, Adaptive, FixedSteps, Grid, Solver
from odelt_eqx.sampling import SampleConfig, invert, sample, sample_with_stats
from odelt_eqx.training.load import load, run_config

COLUMNS = ("time solver", "steps", "network evaluations", "distance to the flow")
COLUMNS += ("class accuracy", "its error", "Fréchet distance", "error of that", "there and back")


@dataclasses.dataclass(frozen=True)
class Config(Output):
    """What is measured.

    Args:
        run: run folder.
        depth: depth in blocks; the full depth by default.
        guidance: classifier-free guidance weight.
        evaluations: network evaluations that a solver may spend.
        solvers: solvers of fixed steps.
        grids: where their steps end.
        as_published: ask the network for the reference's step index.
        tolerances: of tsit5 with steps shared by a batch, measured as well.
        count: samples.
        batch_size: samples per batch.
        features: what samples are compared by.
    """

    run: tyro.conf.Positional[Path] = Path("runs/digits")
    depth: int | None = None
    guidance: float = 1.0
    evaluations: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 16)
    solvers: tuple[Solver, ...] = tuple(SOLVERS)  # pyright: ignore[reportAssignmentType]
    grids: tuple[Grid, ...] = ("uniform",)
    as_published: bool = False
    tolerances: tuple[float, ...] = ()
    count: int = 1000
    batch_size: int = 250
    features: FeaturesConfig = Pixels()


FLOW = Adaptive(solver="tsit5", rtol=1e-5, atol=1e-5)
"""How the flow itself is solved."""


def plans(config: Config) -> Iterator[FixedSteps | Adaptive]:
    """Yield each solver with the most steps that each number of evaluations pays for."""
    for solver in config.solvers:
        for grid in config.grids:
            counts = []
            for budget in config.evaluations:
                cost = FixedSteps(solver=solver).evaluations
                counts.append(max((n for n in range(budget + 1) if cost(n) <= budget), default=0))
            for steps in sorted({n for n in counts if n}):
                yield FixedSteps(steps=steps, solver=solver, grid=grid)
    for tolerance in config.tolerances:
        yield Adaptive(solver="tsit5", rtol=tolerance, atol=tolerance)


def root_mean_square(values: Array | np.ndarray) -> float:
    """Return the root of the mean square of all values."""
    return float(np.sqrt(np.mean(np.square(values))))


class Measure:
    """Samples, and data carried to their noise and back, of one network.

    Args:
        network: the network.
        judge: what the samples are compared by.
        config: which plans, and how many samples.
    """

    def __init__(self, network: Network, judge: Judge, config: Config):
        self._network, self._judge, self._config = network, judge, config
        self._sample = SampleConfig(depth=config.depth or "full", guidance=config.guidance)
        size = min(config.batch_size, config.count)
        starts = range(0, config.count, size)
        self._batches = [inputs(network, 0, start, size) for start in starts]
        self._flow = [sample(network, x, c, self._sample, time=FLOW) for x, _, c in self._batches]
        indices = sample_indices(judge.held_out, config.batch_size)
        self._data, labels = next(iter(read_batches(judge.held_out, indices, len(indices))))
        self._condition = condition_of(network, labels)
        judge.prepare()

    def row(self, plan: FixedSteps | Adaptive) -> tuple[float | str | None, ...]:
        """Return a row of the table, `COLUMNS`."""
        options = {"time": plan, "as_published": self._config.as_published}
        state, errors, evaluations = self._judge.accumulator(self._config.count), [], 0.0
        left = self._config.count  # the last batch is filled up with samples that do not count
        for (noise, labels, condition), flow in zip(self._batches, self._flow, strict=True):
            found, stats = sample_with_stats(
                self._network, noise, condition, self._sample, **options
            )
            self._judge.add(state, found, labels[:left])
            errors.append(np.asarray(found - flow)[:left])
            left -= len(labels)
            evaluations = float(np.mean(stats.evaluations))
        data = jnp.asarray(self._data)
        noise = invert(self._network, data, self._condition, self._sample, **options)
        again = sample(self._network, noise, self._condition, self._sample, **options)
        quality = self._judge.quality(state)
        grid = f", {plan.grid}" if isinstance(plan, FixedSteps) and plan.grid != "uniform" else ""
        size = plan.steps if isinstance(plan, FixedSteps) else f"{plan.rtol:g}"
        return (
            plan.solver + grid,
            size,
            evaluations,
            root_mean_square(np.concatenate(errors)),
            quality.accuracy,
            quality.accuracy_error,
            quality.frechet,
            quality.frechet_error,
            root_mean_square(again - data) / root_mean_square(data),
        )


def run() -> None:
    """Read the command line and measure; the first row is the flow itself."""
    config = tyro.cli(Config, description=__doc__)
    trained = run_config(config.run)
    network = load(config.run)
    judge = Judge(
        config.features.open(network.shape),
        trained.data.open("train"),
        trained.data.open("held-out"),
        classes=class_count(network),
    )
    measure, report = Measure(network, judge, config), Report(COLUMNS, config)
    for plan in (FLOW, *plans(config)):
        report.row(*measure.row(plan))


if __name__ == "__main__":
    run_command(run)
