"""The grid: one row per setting of a network, with its quality and cost."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from odelt_eqx.entry import typed
from odelt_eqx.errors import InputError, check_numbers, check_range
from odelt_eqx.evaluation.metrics import SCORE_SPLIT, distance_name
from odelt_eqx.evaluation.quality import GROUPS, SMALLEST_SET, SUBSET, Quality
from odelt_eqx.files import is_file_name, read_json
from odelt_eqx.ode.plan import (
    STOCHASTIC,
    Adaptive,
    EmbeddedSolver,
    FixedSteps,
    Grid as TimeGrid,
    Solver,
)
from odelt_eqx.sampling import SampleConfig
from odelt_eqx.serialize import as_python, from_dict

GRID = "grid.json"
SEARCH = "search"  # folder of a run whose grid was searched
USUAL = 50_000
"""Samples of a published FID; fewer have a larger one."""
PREPROCESSING = {
    "inception": "the reference does",
    "inception-clean": "clean-fid does",
    "inception-adm": "ADM's evaluator does",
}
"""How Inception's images are resized, by the name of its features."""


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Which rows are measured, and how; what is given twice counts once, and steps rise.

    Args:
        steps: numbers of time steps, each measured with each of the solvers and grids.
        solvers: solvers of these steps.
        grids: where these steps end, see `FixedSteps`.
        adaptive: adaptive solvers of the time ODE, each measured with each of the tolerances.
        tolerances: relative and absolute tolerances of the adaptive solvers.
        per_example: adaptive solvers choose the steps of each sample on its own. Otherwise a batch
            shares them, and within the tolerance samples depend on its size.
        depths: depths in blocks; all of the network's by default.
        guidance: classifier-free guidance weights.
        guidance_intervals: pairs of times between which guidance acts, each measured with each of
            the weights but 1; at all times by default.
        depth_guidance: weights of guidance by depth; 0 for none.
        guide_depths: depths of the guide, each measured with each of the weights but 0, below the
            depth of a row; the network's smallest by default.
        depth_guidance_intervals: pairs of times between which guidance by depth acts; at all times
            by default.
        diffusion: strengths of noise on the way, each measured with the solvers that integrate an
            SDE; 0 for none.
        count: samples per row, classes in turn.
        batch_size: samples per batch, `count` at most; latency is per sample of such a batch.
        length: how each group's unit of length is solved; None as the network says.
        reference: an `.npz` file that samples are compared with, instead of the held-out split:
            statistics as `odelt stats` writes them, images, or a reference batch of ADM, which
            has both.
        autoencoder: weights of the autoencoder that decodes latents, see
            `odelt_eqx.interop.load_autoencoder`; None if samples are images or vectors.
        likelihood: probes for the bits per dimension of the held-out data; 0 skips them.
        seed: decides the noise, the same in every row.

    Raises:
        InputError: a number is out of range, or there is no row.
    """

    steps: tuple[int, ...] = (1, 2, 4, 16, 64)
    solvers: tuple[Solver, ...] = ("euler",)
    grids: tuple[TimeGrid, ...] = ("uniform",)
    adaptive: tuple[EmbeddedSolver, ...] = ()
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    per_example: bool = False
    depths: tuple[int, ...] = ()
    guidance: tuple[float, ...] = (1.0,)
    guidance_intervals: tuple[tuple[float, float], ...] = ()
    depth_guidance: tuple[float, ...] = (0.0,)
    guide_depths: tuple[int, ...] = ()
    depth_guidance_intervals: tuple[tuple[float, float], ...] = ()
    diffusion: tuple[float, ...] = (0.0,)
    count: int = 1000
    batch_size: int = 250
    length: FixedSteps | Adaptive | None = None
    reference: Path | None = None
    autoencoder: str | None = None
    likelihood: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        check_range(self, "seed", least=0)
        if min(self.steps, default=1) < 1:
            raise InputError(f"steps must be positive numbers; got {self.steps}")
        ways = [plan for plan in self.plans for s in self.diffusion if not s or _diffuses(plan)]
        if not (ways and self.guidance and self.depth_guidance):
            raise InputError(
                "there is nothing to measure: give steps, solvers and grids, or adaptive and "
                "tolerances, guidance and depth_guidance; diffusion takes fixed steps of "
                f"{' or '.join(STOCHASTIC)}"
            )
        check_range(self, "likelihood", least=0)
        check_range(self, "count", least=2)
        check_range(self, "batch_size", least=1)
        object.__setattr__(self, "batch_size", min(self.batch_size, self.count))
        for name, value in list(vars(self).items()):
            if isinstance(value, tuple | list):
                once = dict.fromkeys(as_python(sorted(value) if name == "steps" else value))
                object.__setattr__(self, name, tuple(once))

    @property
    def plans(self) -> tuple[FixedSteps | Adaptive, ...]:
        """How the time ODE is solved."""
        fixed = [
            FixedSteps(steps=steps, solver=name, grid=grid)
            for name, grid, steps in itertools.product(self.solvers, self.grids, self.steps)
        ]
        adaptive = [
            Adaptive(rtol=tolerance, atol=tolerance, solver=name, per_example=self.per_example)
            for name, tolerance in itertools.product(self.adaptive, self.tolerances)
        ]
        return *fixed, *adaptive

    def check_depths(self, depths: tuple[int, ...]) -> None:
        """Raise an InputError unless a network with these depths has those of the grid, and a row.

        A guide that is as deep as every row leaves none.
        """
        listed = lambda depths: ", ".join(map(str, depths))
        for name, asked in {"depth": self.depths, "guide_depth": self.guide_depths}.items():
            if wrong := sorted({*asked} - {*depths}):
                known = listed(depths)
                raise InputError(f"{name} must be one of {known} (in blocks); got {wrong[0]}")
        if not self.sample_configs(depths):
            raise InputError(
                "guidance by depth needs a row that is deeper than its guide; got depths "
                f"{listed(self.depths or depths)} and guide_depths "
                f"{listed(self.guide_depths or depths[:1])}"
            )

    def sample_configs(
        self, depths: tuple[int, ...], own: SampleConfig | None = None
    ) -> list[SampleConfig]:
        """Return the setting of each row of a network with these depths.

        Those that share a compiled program are neighbours. The last is `own`, how a run samples
        unless it is told otherwise, if that has one depth and guidance by depth: no grid has it
        unless it is asked for.
        """
        guidance = [
            {"guidance": weight, "guidance_interval": interval}
            for weight in self.guidance
            for interval in (self.guidance_intervals if weight != 1 else ()) or (None,)
        ]
        by_depth = [
            {"depth_guidance": weight, "guide_depth": guide, "depth_guidance_interval": interval}
            for weight in self.depth_guidance
            for guide in ((self.guide_depths or depths[:1]) if weight else (None,))
            for interval in (self.depth_guidance_intervals if weight else ()) or (None,)
        ]
        axes = itertools.product(
            self.depths or depths, by_depth, guidance, self.diffusion, self.plans
        )
        configs = [
            dataclasses.replace(
                SampleConfig(time=time, length=self.length, depth=depth, diffusion=strength),
                **guide,
                **guidance,
            )
            for depth, guide, guidance, strength, time in axes
            if guide["guide_depth"] is None or guide["guide_depth"] < depth
            if not strength or _diffuses(time)
        ]
        depth = None if own is None else depths[-1] if own.depth == "full" else own.depth
        if own is not None and own.depth_guidance and isinstance(depth, int):
            guide = depths[0] if own.guide_depth is None else own.guide_depth
            length = own.length if self.length is None else self.length
            own = dataclasses.replace(own, length=length, depth=depth, guide_depth=guide)
            configs += [own] if guide < depth and own not in configs else []
        return configs


def _diffuses(plan: FixedSteps | Adaptive) -> bool:
    """Whether a plan integrates an SDE."""
    return isinstance(plan, FixedSteps) and plan.solver in STOCHASTIC


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting and what was measured with it; numbers are means over the samples.

    Raises:
        InputError: `samples` is not the bare name of a PNG file, or the depth is no number.
    """

    config: SampleConfig
    quality: Quality
    accepted: float  # time steps taken
    rejected: float  # time steps tried and discarded
    evaluations: float  # of the network; a guided one counts twice
    blocks: float  # block evaluations
    milliseconds: float  # per sample, the median over batches, without compilation
    memory: int  # bytes that the compiled program needs at once on a device, for a batch
    device_memory: float | None  # peak bytes in use on the device so far, where it is reported
    samples: str  # name of the file of the first samples, in the folder `samples`

    def __post_init__(self) -> None:
        # It is read from a file, and a path could lead out of the folder.
        if not is_file_name(self.samples) or self.samples[-4:] != ".png":
            raise InputError(f"samples must be the name of a PNG file; got {self.samples!r}")
        if not isinstance(self.config.depth, int):
            raise InputError(f"the depth of a row must be a number; got {self.config.depth}")

    @property
    def depth(self) -> int:
        """Blocks run."""
        assert isinstance(self.config.depth, int)  # for the type checker: a row has a number
        return self.config.depth

    @property
    def solver(self) -> str:
        """The solver of the time axis, its grid, and the diffusion."""
        plan = self.config.time
        parts = [plan.solver]
        if isinstance(plan, FixedSteps) and plan.grid != "uniform":
            parts.append(plan.grid)
        if self.config.diffusion:
            parts.append(f"diffusion {self.config.diffusion:g}")
        return ", ".join(parts)

    @property
    def time(self) -> str:
        """How the time axis was solved."""
        plan = self.config.time
        if isinstance(plan, Adaptive):
            own = ", per example" if plan.per_example else ""
            return f"{self.solver}, {plan.rtol:g}{own}"
        steps = f"{self.accepted:g} time step{'s' if self.accepted != 1 else ''}"
        return steps if self.solver == "euler" else f"{steps}, {self.solver}"

    @property
    def guidance(self) -> str:
        """The weights of guidance, and the times between which it acts; by depth if it is."""
        config = self.config
        text = f"{config.guidance:g}{_between(config.guidance_interval)}"
        if config.depth_guidance:
            times = _between(config.depth_guidance_interval)
            text += f", by depth {config.guide_depth}: {config.depth_guidance:g}{times}"
        return text


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The quality of as many other real samples, the best to expect, and of noise, the worst."""

    real: Quality
    noise: Quality


@dataclasses.dataclass(frozen=True)
class Bits:
    """Bits per dimension of held-out data, with its standard error, at one depth and guidance."""

    depth: int
    guidance: float
    bits: float
    error: float
    evaluations: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """All that was measured of a run, and how."""

    run: str
    step: int  # training step of the checkpoint
    shape: tuple[int, ...]  # of one sample, decoded
    features: str
    reference: str  # what Fréchet distances are taken to
    accuracy_by: str  # how classes are recognised
    count: int  # samples per row
    batch_size: int
    seed: int
    device: str
    jax: str  # version
    bounds: Bounds
    rows: tuple[Row, ...]
    likelihood: tuple[Bits, ...] = ()
    class_names: tuple[str, ...] = ()
    reference_count: int | None = None  # real samples that Fréchet distances are taken to, if known
    second: str | None = None  # the second judge's features
    real_count: int | None = None  # real samples that others are compared with, if known
    given_images: bool = False  # whether these are images of the reference

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError("a grid has at least one row; got none")

    @property
    def counts(self) -> str:
        """Between how many samples Fréchet distances are, unless it is the usual 50,000."""
        if self.count == self.reference_count == USUAL:
            return ""
        real = "?" if self.reference_count is None else f"{self.reference_count:,}"
        return f", {self.count:,} samples to {real}"

    @property
    def frechet(self) -> str:
        """Name of the Fréchet distance in these features."""
        return distance_name("Fréchet", self.features)

    @property
    def front(self) -> list[Row]:
        """The rows that no other beats in both latency and quality, fastest first."""
        best: list[Row] = []
        for row in sorted(self.rows, key=lambda row: (row.milliseconds, row.quality.frechet)):
            if not best or row.quality.frechet < best[-1].quality.frechet:
                best.append(row)
        return best

    def table(self) -> list[list[str]]:
        """Return the grid as text: the header, a line per row, then real samples and noise."""
        lines = [
            [
                *("depth", "time solver", "time steps", "guidance", "ms per sample"),
                *("network evaluations", "block evaluations", "class accuracy"),
                f"{self.frechet}{self.counts}",
                *("× real", distance_name("Kernel", self.features), "precision", "recall"),
                *self.further,
                "program MB",
            ]
        ]
        for row in self.rows:
            rejected = f" + {row.rejected:g} rejected" if row.rejected else ""
            adaptive = isinstance(row.config.time, Adaptive)
            solver = row.time if adaptive else row.solver
            line = [str(row.depth), solver, f"{row.accepted:g}{rejected}"]
            line += [row.guidance, f"{row.milliseconds:.3f}"]
            line += [f"{row.evaluations:g}", f"{row.blocks:g}", *self._quality(row.quality)]
            lines.append([*line, f"{row.memory / 1e6:.1f}"])
        for name, quality in (("real samples", self.bounds.real), ("noise", self.bounds.noise)):
            lines.append([name, *[""] * 6, *self._quality(quality), ""])
        return lines

    def _quality(self, quality: Quality) -> list[str]:
        accuracy, real = quality.accuracy, self.bounds.real.frechet
        return [
            "" if accuracy is None else f"{100 * accuracy:.1f} %",
            _number(quality.frechet, ".2f", quality.frechet_error),
            f"{quality.frechet / real:.2f} ×" if real > 0 else "",
            _number(quality.kernel, ".4f", quality.kernel_error),
            _number(quality.precision, ".2f"),
            _number(quality.recall, ".2f"),
            *(
                _number(getattr(quality, field), ".2f", getattr(quality, f"{field}_error"))
                for field in self.further.values()
            ),
        ]

    @property
    def further(self) -> dict[str, str]:
        """Names of what only some features or samples have, and the fields of `Quality`."""
        names = {
            distance_name("Spatial", self.features): "spatial",
            "Inception score": "inception_score",
            distance_name("Fréchet", self.second or ""): "second",
        }
        return {n: f for n, f in names.items() if getattr(self.bounds.real, f) is not None}

    def bits_table(self) -> list[list[str]]:
        """Return the bits per dimension as text, with a header; empty if there are none."""
        lines = [
            [str(b.depth), f"{b.guidance:g}", _number(b.bits, ".3f", b.error), f"{b.evaluations:g}"]
            for b in self.likelihood
        ]
        header = ["depth", "guidance", "bits per dimension of held-out data", "network evaluations"]
        return [header, *lines] if lines else []

    def note(self) -> str:
        """Return how the grid was measured, and what its columns mean."""
        names = {field: name for name, field in self.further.items()}
        distances = self.frechet + (f" and {names['spatial']}" if "spatial" in names else "")
        sentences = [
            f"{self.count} samples per row from seed {self.seed}, in batches of {self.batch_size} "
            f"on {self.device}, checkpoint of step {self.step}, without compilation.",
            "Class accuracy: empty, as there are no classes."
            if self.bounds.real.accuracy is None
            else f"Class accuracy: {self.accuracy_by}.",
            f"{distances}: to {self.reference}, ± its standard error by the jackknife over "
            f"{GROUPS} disjoint groups of the samples; × real: divided by that of as many other "
            + ("real samples." if self.bounds.real.frechet > 0 else "real samples, 0: empty."),
            self._inception_note,
            self._counts_note,
            f"{names['second']}: to {'given images' if self.given_images else 'the held-out split'}"
            ", the second judge, for which nothing was trained."
            if "second" in names
            else "",
            "Program MB: memory that the compiled program needs on a device for a batch.",
        ]
        return " ".join(filter(None, sentences))

    @property
    def _counts_note(self) -> str:
        """Between how many samples the kernel distance, precision and recall are."""
        kernel, manifolds = distance_name("Kernel", self.features), "precision and recall"
        count, real = min(SUBSET, self.count), self.real_count
        if self.rows[0].quality.kernel is None:
            return f"{kernel}, {manifolds}: empty, as they need {SMALLEST_SET} samples of each."
        if real is None:
            return f"{kernel}, {manifolds}: of the first {count:,} samples."
        least = min(count, real)
        both = f"all {self.count:,} and all {real:,}" if self.given_images else f"{least:,} of each"
        return (
            f"{kernel}: of the first {count:,} samples to {min(SUBSET, real):,} real ones; "
            f"{manifolds}: of {both}."
        )

    @property
    def _inception_note(self) -> str:
        """What numbers by Inception are; nothing if there are none."""
        if self.features not in PREPROCESSING:
            return ""
        kinds = {
            self.frechet: "Fréchet distance of the 2,048 pooled features",
            distance_name("Spatial", self.features): "that of 2,023 spatial ones",
            "Inception score": f"of the classes, the mean over splits of {SCORE_SPLIT:,} samples",
        }
        shown = [f"{n}: {kind}" for n, kind in kinds.items() if n in (self.frechet, *self.further)]
        few = (
            f" Published numbers are of {USUAL:,} samples: those of {self.count:,} are worse."
            if self.count < USUAL
            else ""
        )
        resized = f"resized as {PREPROCESSING[self.features]}"
        return f"By Inception v3, images {resized}: {'; '.join(shown)}.{few}"

    def markdown(self) -> str:
        """Return the grid as a page of Markdown."""
        page = f"{markdown_table(self.table())}\n{self.note()}\n"
        return f"{page}\n{markdown_table(self.bits_table())}" if self.likelihood else page


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " from {:g} to {:g}".format(*interval)


def _number(value: float | None, digits: str, error: float | None = None) -> str:
    """Return a number with its error as text; nothing for None."""
    if value is None:
        return ""
    return f"{value:{digits}}" if error is None else f"{value:{digits}} ± {error:{digits}}"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, the first line its header; nothing for no lines."""
    rows = [*lines[:1], ["---"] * len(lines[0]), *lines[1:]] if lines else []
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def load_grid(path: Path) -> Grid:
    """Return the grid of an evaluated run.

    Args:
        path: the folder that evaluation wrote to, or its `grid.json`.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    path = path / GRID if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no grid {path}: measure it by {typed('evaluate', 'RUN')}")
    return from_dict(read_json(path, "a measured grid"), Grid, str(path))
