"""What there is to know of a run from outside, while it goes on or later."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import equinox as eqx
import jax

from odelt_eqx.config import TrainConfig, flat
from odelt_eqx.data import open_source
from odelt_eqx.errors import InputError
from odelt_eqx.interop.truncate import truncate
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.training.checkpoint import CHECKPOINTS, run_config
from odelt_eqx.watching.folder import METRICS


def describe(run: Path) -> str:
    """Return a run's size, checkpoints, figures, data and config as tables of plain text.

    It reads, and neither writes nor computes on a device, so that a run can be looked at while it
    goes on.

    Args:
        run: run folder.

    Raises:
        InputError: the folder is no run.
    """
    config = run_config(run)
    tables = [
        _table(("depth", "parameters", "FLOPs of a velocity"), _sizes(config.model)),
        _table(("checkpoint", "written", "megabytes"), _checkpoints(run)),
        _table(("figure", "step", "latest value"), _latest(run)),
        _table(("data", "train", "held-out"), _data(config)),
        _table(("option", "value"), [(k, _value(v)) for k, v in flat(config).items()]),
    ]
    return "\n\n".join(tables)


def _sizes(config: DiTConfig) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each depth, which holds what truncation keeps, and for the plain DiT."""
    whole = eqx.filter_eval_shape(lambda: DiT(config, key=jax.random.key(0)))
    for depth in (*config.depths, None):
        model = whole if depth is None else eqx.filter_eval_shape(truncate, whole, depth)
        count = sum(leaf.size for leaf in jax.tree.leaves(model))
        name = "plain" if depth is None else str(depth)
        yield name, f"{count:,}", f"{velocity_flops(config, depth):,}"


def _data(config: TrainConfig) -> Iterator[tuple[str, ...]]:
    """Yield a row for each thing there is to say of the data, if they can be read from here."""
    try:
        train = open_source(config.data, "train").describe()
        held_out = open_source(config.data, "held-out").describe()
    except InputError as error:
        yield "not read", str(error)
        return
    yield from ((name, train[name], held_out[name]) for name in train)


def _checkpoints(run: Path) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each complete checkpoint: one in the making has another name than a step."""
    found = [path for path in (run / CHECKPOINTS).glob("*") if path.name.isdigit()]
    for path in sorted(found, key=lambda path: int(path.name)):
        try:
            written = datetime.fromtimestamp(path.stat().st_mtime)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        except FileNotFoundError:  # the run has just replaced it by a newer one
            continue
        yield path.name, f"{written:%Y-%m-%d %H:%M:%S}", f"{size / 1e6:.1f}"


def _latest(run: Path) -> list[tuple[str, str, str]]:
    """Return a row for each figure, with the step that it was last written at."""
    path = run / METRICS
    latest: dict[str, tuple[int, float | None]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            step = row.pop("step")
        except (json.JSONDecodeError, KeyError):  # half a line: it is being written
            continue
        latest |= {name: (step, value) for name, value in row.items()}
    shown = lambda value: "not finite" if value is None else f"{value:g}"
    return [(name, str(step), shown(value)) for name, (step, value) in latest.items()]


def _value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> str:
    """Return columns of equal width, or say that there is nothing yet."""
    lines = [head, *rows]
    if len(lines) == 1:
        lines.append(("none yet",))
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )
