"""Evaluation of a run: its grid, figures, and a report that is one page of HTML."""

import base64
import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import jax

from odelt_eqx.config import TrainConfig, flat
from odelt_eqx.entry import typed
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels, decoded_shape, open_autoencoder
from odelt_eqx.evaluation.figures import SAMPLES, save_curves, save_grid_samples, sheet_columns
from odelt_eqx.evaluation.grid import GRID, Grid, GridConfig, Row, markdown_table
from odelt_eqx.evaluation.measure import (
    Meter,
    class_count,
    lock_results,
    network_on_devices,
    time_steps,
)
from odelt_eqx.evaluation.metrics import load_reference
from odelt_eqx.evaluation.plane import save_density, save_length
from odelt_eqx.evaluation.quality import Judge, as_text
from odelt_eqx.files import member_path, read_text, write_json, write_text
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.parallel import describe_devices, is_main_process, on_main_process
from odelt_eqx.progress import Progress
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.load import latest_step, load_contents, other_examples, run_config

TABLE = "grid.md"


def evaluate(
    run: Path,
    config: GridConfig,
    out: Path | None = None,
    *,
    features: FeaturesConfig = Pixels(),
    command: str = "",
    seconds: float | None = None,
) -> list[Path]:
    """Measure the grid of a run, and its own setting, and write it with figures and a report.

    Rows that were measured with the same settings are taken from `rows.jsonl` in the same folder.

    Args:
        out: folder of the results; the run's own by default.
        command: the command that the report shows as its source.
        seconds: about how long it may take, compilation included; the largest numbers of time steps
            are left out otherwise, and said.

    Returns:
        The files written: grid.png, grid.md, grid.json, curves.png, report.html; for points in the
        plane also length.png and density.png.

    Raises:
        InputError: the folder is not a run with a checkpoint, the features cannot be read, the
            network does not have one of the depths, or another process measures in the folder.
        Interrupted: a signal asked for it; the same call resumes the measurement.
    """
    trained, folder = run_config(run), run if out is None else out
    trained.check_sampling(*config.diffusion)
    config.check_depths(trained.model.depths)
    judge, figures = open_judge(run, config, features), []
    step = latest_step(run)  # training may go on meanwhile
    with network_on_devices(run) as network, lock_results(folder):
        meter = Meter(network, judge, config, folder, trained.sample, command)
        with Progress("evaluate (samples)", config.count * len(meter.configs)) as progress:
            rows = list(meter.rows(progress, seconds))
        if network.shape == (2,):
            figures = [folder / "length.png", folder / "density.png"]
            save_length(network, judge.held_out, trained.sample, figures[0])
            save_density(network, judge.held_out, trained.sample, figures[1])
        paths = write_grid(meter, rows, step, trained, run, folder, command, figures)
    measured = [row.config for row in rows]
    left_out = sorted({time_steps(each) for each in meter.configs if each not in measured})
    if seconds is not None and is_main_process() and left_out:
        warnings.warn(
            f"not measured, as it would take over {seconds:.0f} s: {', '.join(map(str, left_out))} "
            f"time steps; {command or typed('evaluate', run)} measures them",
            stacklevel=2,
        )
    return paths


def open_judge(run: Path, config: GridConfig, features: FeaturesConfig) -> Judge:
    """Return what measures the samples of a run; say so if its training examples have changed.

    Raises:
        InputError: the features, the autoencoder or the statistics cannot be read, or the data have
            other classes than when the run began.
    """
    trained = run_config(run)
    train, held_out = trained.data.open("train"), trained.data.open("held-out")
    if (difference := other_examples(run, train.contents)) and is_main_process():
        print(f"note: {difference}", file=sys.stderr)
    autoencoder = open_autoencoder(config.autoencoder, trained.model.shape)
    shape = decoded_shape(autoencoder, trained.model.shape)
    reference = images = None
    if config.reference is not None:
        reference, images = load_reference(config.reference, shape)
    return Judge(
        features.open(shape),
        train,
        held_out,
        classes=class_count(trained.model),
        reference=reference,
        images=images,
        autoencoder=autoencoder,
        batch_size=config.batch_size,
    )


def write_grid(
    meter: Meter,
    rows: Sequence[Row],
    step: int,
    trained: TrainConfig,
    run: Path,
    folder: Path,
    command: str,
    figures: Sequence[Path] = (),
) -> list[Path]:
    """Write rows that were measured, with figures and a report; return the files.

    All processes must call it. `step` is that of the checkpoint that was measured; `figures` are
    shown in the report besides, if they exist by then.
    """
    bounds, bits, config, judge = meter.bounds(), tuple(meter.bits()), meter.config, meter.judge
    names = ("grid.png", TABLE, GRID, "curves.png", "report.html")

    def write() -> None:
        assert bounds is not None  # process 0 has the values
        grid = Grid(
            run=run.resolve().name,
            step=step,
            shape=judge.shape,
            features=judge.features.name,
            reference=judge.reference,
            accuracy_by=judge.accuracy_by,
            count=config.count,
            batch_size=config.batch_size,
            seed=config.seed,
            device=describe_devices(),
            jax=jax.__version__,
            bounds=bounds,
            rows=tuple(rows),
            likelihood=bits,
            class_names=judge.class_names,
            reference_count=judge.reference_count,
            second=None if judge.second is None else judge.second.name,
            real_count=judge.real_count,
            given_images=judge.images is not None,
        )
        save_grid_samples(grid, judge, folder)
        write_text(folder / TABLE, grid.markdown())
        write_json(folder / GRID, to_dict(grid))
        save_curves(grid, folder / "curves.png")
        page = _page(grid, trained, run, folder, command, figures)
        write_text(folder / "report.html", as_text(page))

    on_main_process(write)
    return [*(folder / name for name in names), *figures]


def _page(
    grid: Grid, trained: TrainConfig, run: Path, folder: Path, command: str, figures: Sequence[Path]
) -> str:
    """Return the report, a page that needs no other file."""
    commands = {row.samples: _sample_command(row, grid, trained, run) for row in grid.rows}
    page = f"# this page\n{command}\n\n" if command else ""
    page += "# samples with every setting that no other beats, fastest first\n"
    rows = [
        {
            **to_dict(row),
            "depth": row.depth,
            "time": row.time,
            "solver": row.solver,
            "guidance": row.guidance,
            "front": row in grid.front,
            "command": commands[row.samples],
            "sheet": _embed(member_path(folder, SAMPLES, row.samples)),
        }
        for row in grid.rows
    ]
    data = {**to_dict(grid), "rows": rows, "frechet": grid.frechet, "strip": [1, 1], "classes": []}
    data["further"] = [*grid.further.items()]
    if len(grid.shape) == 3:
        height, width, _ = grid.shape
        names = grid.class_names
        columns = min(sheet_columns(grid.shape, len(names)), grid.count)
        data["strip"] = [columns * (width + 1) + 1, height + 1]
        data["classes"] = [names[i % len(names)] for i in range(columns)]
    return Template(page_part("report.html")).substitute(
        style=page_part("page.css"),
        plot=page_part("plot.js"),
        title=escape(grid.run),
        subtitle=f"Checkpoint of step {grid.step:,}. {len(grid.rows)} settings, {grid.count:,} "
        f"samples each, on {escape(grid.device)}.",
        table=_table(grid),
        note=escape(grid.note()),
        bits=escape(markdown_table(grid.bits_table())),
        figures="".join(f'<img src="{_embed(path)}" alt="{path.stem}">' for path in figures),
        config="".join(
            f"<tr><th scope=row>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
            for name, value in flat(trained).items()
        ),
        commands=escape(page + "\n".join(commands[row.samples] for row in grid.front)),
        data=json.dumps(data).replace("</", "<\\/"),
    )


def page_part(name: str) -> str:
    """Return a file of this folder that is part of a page."""
    return files("odelt_eqx.evaluation").joinpath(name).read_text("utf-8")


def _table(grid: Grid) -> str:
    """Return the grid as the inside of an HTML table."""
    header, *lines = grid.table()
    kinds = ["front" if row in grid.front else "" for row in grid.rows] + ["bound", "bound"]
    line = lambda cells, tag: "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    body = "".join(
        f'<tr class="{kind}">{line(cells, "td")}</tr>'
        for kind, cells in zip(kinds, lines, strict=True)
    )
    return f"<thead><tr>{line(header, 'th')}</tr></thead><tbody>{body}</tbody>"


def _sample_command(row: Row, grid: Grid, trained: TrainConfig, run: Path) -> str:
    """Return the command that samples with the setting of a row."""
    options = _options(row.config, trained.sample)
    if grid.shape != trained.model.shape:
        options = ["--autoencoder", "AUTOENCODER", *options]
    return typed("sample", run, *options)


def _options(value: Any, default: Any, prefix: str = "") -> list[str]:
    """Return the command-line options of what differs between two dataclasses, plans last."""
    options, plans = [], []
    for field in dataclasses.fields(value):
        new, old = getattr(value, field.name), getattr(default, field.name)
        name = prefix + field.name.replace("_", "-")
        if new == old:
            continue
        if field.name in ("time", "length"):
            kind = {FixedSteps: "fixed-steps", Adaptive: "adaptive"}.get(type(new), "none")
            plans.append(f"{name}:{kind}")
            if new is not None:
                plans += _options(new, old if type(old) is type(new) else type(new)(), f"{name}.")
        elif isinstance(new, bool):
            options.append(f"--{prefix}{'' if new else 'no-'}{field.name.replace('_', '-')}")
        else:
            options += [f"--{name}", *map(str, new if isinstance(new, tuple) else [new])]
    return options + plans


def _embed(path: Path) -> str:
    """Return a PNG file as a data URL; nothing if it is gone."""
    if not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def describe_run(run: Path, measured: bool = True) -> str:
    """Return the classes and the measured grid of a run as sections of Markdown, if it has them.

    The grid is that of the EMA weights; it is left out unless what is described was `measured`.
    """
    contents, grid = load_contents(run), run / TABLE
    sections = ""
    if contents is not None:
        lines = (f"- {i}: {as_text(name)}" for i, name in enumerate(contents.class_names))
        sections += "## Classes\n\n" + "\n".join(lines) + "\n\n"
    if measured and grid.is_file():
        sections += f"## Measured\n\n{read_text(grid, 'a table of a grid').strip()}\n\n"
    return sections
