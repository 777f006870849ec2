"""The report as one page that needs nothing but itself."""

import base64
import json
import shlex
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from odelt_eqx.config import TrainConfig, flat
from odelt_eqx.evaluation.grid import Cell
from odelt_eqx.evaluation.pictures import plan_name
from odelt_eqx.evaluation.sheets import columns
from odelt_eqx.evaluation.table import Map, front, header, markdown_bits, note, rows
from odelt_eqx.files import replacing
from odelt_eqx.ode.plan import FixedSteps

TEMPLATE = "report.html"


def save_page(
    measured: Map, config: TrainConfig, folder: Path, path: Path, *, command: str, run: Path
) -> None:
    """Write the page: plot, dials, samples, table, config and commands.

    Args:
        measured: the map.
        config: the run's.
        folder: where the sheets of samples lie.
        path: where to write.
        command: what made it.
        run: the run folder as the user names it.
    """
    template = files("odelt_eqx.evaluation").joinpath(TEMPLATE).read_text("utf-8")
    text = Template(template).substitute(
        title=escape(measured.run),
        subtitle=escape(_subtitle(measured)),
        table=_table(measured),
        note=escape(note(measured)),
        bits=escape(markdown_bits(measured)),
        config="".join(
            f"<tr><th scope=row>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
            for name, value in flat(config).items()
        ),
        commands=escape(_commands(measured, config, command, run)),
        data=json.dumps(_data(measured, config, folder, run)).replace("</", "<\\/"),
    )
    with replacing(path) as beside:
        beside.write_text(text, "utf-8")


def _subtitle(measured: Map) -> str:
    return (
        f"Checkpoint of step {measured.step:,}. {len(measured.cells)} settings, "
        f"{measured.count:,} pictures each, on {measured.device}."
    )


def _table(measured: Map) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in header(measured))
    best = [measured.cells.index(cell) for cell in front(measured.cells)]
    body = []
    for index, row in enumerate(rows(measured)):
        kind = "front" if index in best else "bound" if index >= len(measured.cells) else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in row)
        body.append(f'<tr class="{kind}">{cells}</tr>')
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _commands(measured: Map, config: TrainConfig, command: str, run: Path) -> str:
    best = "\n".join(_sampling(cell, measured, config, run) for cell in front(measured.cells))
    made = f"# this page\n{command}\n\n" if command else ""
    return f"{made}# pictures at every setting that no other beats, fastest first\n{best}"


def _sampling(cell: Cell, measured: Map, config: TrainConfig, run: Path) -> str:
    """Return the command that draws with a cell's setting."""
    words = ["python", "scripts/sample.py", str(run), "--depth", str(cell.depth)]
    if cell.guidance != 1:
        words += ["--guidance", f"{cell.guidance:g}"]
    length = None if measured.length == config.model.length else measured.length
    for axis, plan in (("time", cell.time), ("length", length)):
        if isinstance(plan, FixedSteps):
            words += [f"{axis}:fixed-steps", f"--{axis}.steps", str(plan.steps)]
        elif plan is not None:
            words += [f"{axis}:adaptive", f"--{axis}.rtol", f"{plan.rtol:g}"]
            words += [f"--{axis}.atol", f"{plan.atol:g}"]
            words += [f"--{axis}.per-example"] if plan.per_example else []
        if plan is not None and plan.solver != type(plan)().solver:
            words += [f"--{axis}.solver", plan.solver]
    if measured.image_shape != config.model.image_shape:
        words += ["--autoencoder", "AUTOENCODER"]
    return shlex.join(words)


def _data(measured: Map, config: TrainConfig, folder: Path, run: Path) -> dict[str, Any]:
    """Return what the page's script draws from."""
    cells, best = measured.cells, front(measured.cells)
    height, width, _ = shape = measured.image_shape
    wide = min(columns(shape, config.model.num_classes), measured.count)
    unique = lambda values: list(dict.fromkeys(values))
    return {
        "frechet": measured.frechet,
        "real": measured.bounds.real.frechet,
        "depths": sorted({cell.depth for cell in cells}),
        "plans": unique(plan_name(cell) for cell in cells),
        "weights": unique(cell.guidance for cell in cells),
        "strip": [wide * (width + 1) + 1, height + 1],
        "classes": [i % config.model.num_classes for i in range(wide)],
        "cells": [
            {
                "depth": cell.depth,
                "plan": plan_name(cell),
                "guidance": cell.guidance,
                "solver": cell.time.solver,
                "ms": cell.milliseconds,
                "value": cell.quality.frechet,
                "error": cell.quality.frechet_error,
                "accuracy": cell.quality.accuracy,
                "evaluations": cell.evaluations,
                "blocks": cell.blocks,
                "megabytes": cell.memory / 1e6,
                "front": cell in best,
                "command": _sampling(cell, measured, config, run),
                "sheet": _embedded(folder / cell.samples),
            }
            for cell in cells
        ],
    }


def _embedded(path: Path) -> str:
    """Return a PNG as a page can hold it; nothing if it is gone."""
    if not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
