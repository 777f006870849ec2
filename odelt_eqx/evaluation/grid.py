"""The map of what a model can do: its axes, and what a cell of it holds."""

import dataclasses
import itertools
from pathlib import Path

import jax

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.ode.plan import Adaptive, EmbeddedSolver, FixedSteps


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Which cells are measured, and how.

    Args:
        steps: numbers of Euler steps in time.
        solvers: adaptive solvers of the time ODE, each measured at each of the tolerances.
        tolerances: relative and absolute tolerances of the adaptive solvers.
        per_example: adaptive solvers choose their steps for each picture on its own; else for a
            batch at once, so that its size is seen in the pictures, within the tolerance.
        depths: depths in blocks; none given means all that the model has.
        guidance: classifier-free guidance weights.
        count: pictures per cell, classes in turn.
        batch_size: pictures sampled at once; latency is per picture of such a batch.
        length: how each group's unit of length is solved; None as the run was trained.
        reference: an `.npz` file of statistics that Fréchet distances are taken to, see
            scripts/stats.py; None for those of the held-out split.
        autoencoder: weights of the autoencoder that latents are decoded by, see
            `odelt_eqx.interop.load_autoencoder`; None where images are made.
        likelihood: probes for the bits per dimension of the held-out data; 0 leaves them out.
        seed: decides the noise, the same in every cell.
    """

    steps: tuple[int, ...] = (1, 2, 4, 16, 64)
    solvers: tuple[EmbeddedSolver, ...] = ()
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    per_example: bool = False
    depths: tuple[int, ...] = ()
    guidance: tuple[float, ...] = (1.0,)
    count: int = 1000
    batch_size: int = 250
    length: FixedSteps | Adaptive | None = None
    reference: Path | None = None
    autoencoder: str | None = None
    likelihood: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the counts."""
        if min(self.steps, default=1) < 1:
            raise InputError(f"steps must be positive numbers; got {self.steps}")
        if not (self.plans and self.guidance):
            raise InputError(
                "there is nothing to measure: give steps, or solvers and tolerances, and guidance"
            )
        if self.likelihood < 0:
            raise InputError(f"likelihood must be a number of probes; got {self.likelihood}")
        if not 1 <= self.batch_size <= self.count or self.count < 2:
            raise InputError(
                f"batch_size must lie between 1 and count, which is at least 2; "
                f"got {self.batch_size} and {self.count}"
            )

    @property
    def plans(self) -> tuple[FixedSteps | Adaptive, ...]:
        """How the time ODE is solved, one column of the map each."""
        fixed = [FixedSteps(steps=steps) for steps in self.steps]
        pairs = itertools.product(self.solvers, self.tolerances)
        alone = self.per_example
        return *fixed, *(
            Adaptive(rtol=tol, atol=tol, solver=name, per_example=alone) for name, tol in pairs
        )

    def points(self, depths: tuple[int, ...]) -> list["Point"]:
        """Return the cells of the map, those that share a program one after the other."""
        axes = itertools.product(self.depths or depths, self.guidance, self.plans)
        return [Point(*values) for values in axes]


@dataclasses.dataclass(frozen=True)
class Point:
    """Where in the map a cell is.

    Args:
        depth: blocks run.
        guidance: classifier-free guidance weight.
        time: how the time ODE is solved.
    """

    depth: int
    guidance: float
    time: FixedSteps | Adaptive

    @property
    def program(self) -> tuple[object, ...]:
        """What is compiled: points that agree in it share a program."""
        guidance = self.guidance if self.guidance in (0, 1) else None
        return self.depth, guidance, jax.tree.structure(self.time)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        depth: blocks run.
        guidance: classifier-free guidance weight.
        time: how the time ODE was solved.
        accepted: time steps that were taken, on average over the pictures.
        rejected: time steps that were tried and thrown away, on average.
        evaluations: network evaluations per picture, on average; a guided one counts twice.
        blocks: block evaluations per picture, on average.
        quality: of the pictures made.
        milliseconds: per picture, the median over batches, compilation apart.
        memory: bytes that the compiled program needs at once on a device, for a batch.
        device_memory: the most bytes that were in use on the device up to then, where it counts.
        samples: path of the first pictures, beside the table.
    """

    depth: int
    guidance: float
    time: FixedSteps | Adaptive
    accepted: float
    rejected: float
    evaluations: float
    blocks: float
    quality: Quality
    milliseconds: float
    memory: int
    device_memory: float | None
    samples: str

    @property
    def point(self) -> Point:
        """Where in the map it is."""
        return Point(self.depth, self.guidance, self.time)
