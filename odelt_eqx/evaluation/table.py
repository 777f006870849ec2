"""The map in rows and columns, as text for people and as JSON for programs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cattrs

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.choice import called
from odelt_eqx.evaluation.grid import Cell
from odelt_eqx.evaluation.likelihood import Bits
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.evaluation.tally import SUBSET
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.serial import converter

TABLE = "table.json"


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What the figures mean: the best and the worst that could be expected.

    Args:
        real: of as many other real pictures.
        noise: of standard normal noise.
    """

    real: Quality
    noise: Quality


@dataclasses.dataclass(frozen=True)
class Map:
    """All that was measured of a run, and how.

    Args:
        run: name of the run.
        image_shape: of one picture.
        step: training steps of the checkpoint.
        features: what pictures are compared by.
        reference: what Fréchet distances are taken to.
        accuracy_by: who says which class a picture shows.
        count: pictures a cell.
        batch_size: pictures at once.
        length: how each group's unit of length was solved.
        seed: of the noise.
        device: where it was measured.
        jax: version.
        bounds: the best and the worst that could be expected.
        cells: the rows.
        likelihood: bits per dimension.
    """

    run: str
    image_shape: tuple[int, int, int]
    step: int
    features: str
    reference: str
    accuracy_by: str
    count: int
    batch_size: int
    length: FixedSteps | Adaptive
    seed: int
    device: str
    jax: str
    bounds: Bounds
    cells: tuple[Cell, ...]
    likelihood: tuple[Bits, ...] = ()

    @property
    def frechet(self) -> str:
        """What the Fréchet distance is called in these features."""
        return called("Fréchet", self.features)

    def text(self) -> str:
        """Return the map as JSON."""
        return json.dumps(converter().unstructure(self), indent=2, allow_nan=False) + "\n"


def load_map(path: Path) -> Map:
    """Return the map of an evaluated run.

    Args:
        path: the folder that evaluation wrote to, or its `table.json`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    path = path / TABLE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no map {path}: make it with scripts/evaluate.py")
    try:
        return converter().structure(json.loads(path.read_text()), Map)
    except json.JSONDecodeError as error:
        problem = str(error)
    except (cattrs.BaseValidationError, TypeError, AttributeError) as error:
        problem = "; ".join(cattrs.transform_error(error))[:200]
    raise InputError(f"{path} is no map of this version; evaluate the run again: {problem}")


def front(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that no other beats in both latency and quality, fastest first."""
    best: list[Cell] = []
    for cell in sorted(cells, key=lambda c: (c.milliseconds, c.quality.frechet)):
        if not best or cell.quality.frechet < best[-1].quality.frechet:
            best.append(cell)
    return best


def header(measured: Map) -> list[str]:
    """Return the heads of the columns of `rows`."""
    return [
        *("depth", "time solver", "time steps", "guidance", "ms per picture"),
        *("network evaluations", "block evaluations", "asked class"),
        *(measured.frechet, "× real", called("Kernel", measured.features), "precision", "recall"),
        "program MB",
    ]


def rows(measured: Map) -> list[list[str]]:
    """Return the table: a row a cell, then real pictures and noise."""
    real = measured.bounds.real
    table = []
    for cell in measured.cells:
        rejected = f" + {cell.rejected:g} rejected" if cell.rejected else ""
        first = [str(cell.depth), solver(cell.time), f"{cell.accepted:g}{rejected}"]
        first += [f"{cell.guidance:g}", f"{cell.milliseconds:.3f}"]
        first += [f"{cell.evaluations:g}", f"{cell.blocks:g}"]
        table.append([*first, *_quality(cell.quality, real), f"{cell.memory / 1e6:.1f}"])
    for name, quality in (("real pictures", real), ("noise", measured.bounds.noise)):
        table.append([name, *[""] * 6, *_quality(quality, real), ""])
    return table


def solver(plan: FixedSteps | Adaptive) -> str:
    """Return what a table calls a plan of the time axis, without its number of steps."""
    if isinstance(plan, FixedSteps):
        return plan.solver
    return f"{plan.solver}, {plan.rtol:g}{', each its own' if plan.per_example else ''}"


def _quality(quality: Quality, real: Quality) -> list[str]:
    ratio = f"{quality.frechet / real.frechet:.2f} ×" if real.frechet > 0 else ""
    return [
        _number(quality.accuracy, None, ".1f", 100, " %"),
        _number(quality.frechet, quality.frechet_error, ".2f"),
        ratio,
        _number(quality.kernel, quality.kernel_error, ".4f"),
        _number(quality.precision, None, ".2f"),
        _number(quality.recall, None, ".2f"),
    ]


def _number(
    value: float | None, error: float | None, digits: str, factor: float | int = 1, unit: str = ""
) -> str:
    if value is None:
        return ""
    tail = "" if error is None else f" ± {factor * error:{digits}}"
    return f"{factor * value:{digits}}{tail}{unit}"


def note(measured: Map) -> str:
    """Return how the table was made and what its columns mean."""
    asked = f"Asked class: share given the class asked for {measured.accuracy_by}. "
    return (
        f"{measured.count} pictures a row from seed {measured.seed}, in batches of "
        f"{measured.batch_size} on {measured.device}, checkpoint of step {measured.step}, "
        f"compilation apart. {asked if measured.bounds.real.accuracy is not None else ''}"
        f"{measured.frechet}: to {measured.reference}, ± its standard error by the jackknife over "
        "ten disjoint groups of the pictures; × real: over that of as many other real pictures. "
        f"{called('Kernel', measured.features)}, precision and recall: of the first "
        f"{min(SUBSET, measured.count)} pictures. Program MB: what the compiled program needs at "
        "once for a batch on a device."
    )


def markdown(measured: Map) -> str:
    """Return the map as a page of Markdown."""
    heads = header(measured)
    lines = [heads, ["---"] * len(heads), *rows(measured)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note(measured)}\n"
    return f"{text}\n{markdown_bits(measured)}\n" if measured.likelihood else text


def markdown_bits(measured: Map) -> str:
    """Return the bits per dimension as a table of Markdown, or nothing."""
    if not measured.likelihood:
        return ""
    head = "| depth | guidance | bits per dimension of held-out data | network evaluations |"
    likely = "\n".join(
        f"| {row.depth} | {row.guidance:g} | {row.bits:.3f} ± {row.error:.3f} "
        f"| {row.evaluations:g} |"
        for row in measured.likelihood
    )
    return f"{head}\n|---|---|---|---|\n{likely}"
