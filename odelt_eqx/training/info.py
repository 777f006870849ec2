"""A description of a run from its folder, while it trains or later."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import equinox as eqx
import jax

from odelt_eqx.config import TrainConfig, flat
from odelt_eqx.errors import InputError
from odelt_eqx.interop.truncate import truncate
from odelt_eqx.nn import AnyNetworkConfig
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.nn.groups import network_template
from odelt_eqx.training.checkpoint import CHECKPOINTS, SNAPSHOTS
from odelt_eqx.training.load import run_config
from odelt_eqx.training.logging import read_metrics


def describe(run: Path) -> str:
    """Return a run's size, checkpoints, metrics, data and config as tables of plain text.

    It only reads, and computes nothing on a device, so it is safe while the run trains.

    Raises:
        InputError: the folder is not a run.
    """
    config, snapshots = run_config(run), _snapshots(run)
    tables = [
        _table(("depth", "parameters", "FLOPs of a velocity"), _sizes(config.model)),
        _table(("checkpoint", "written", "megabytes"), _checkpoints(run / CHECKPOINTS)),
        *([_table(("snapshots", "steps", "megabytes"), snapshots)] if snapshots else []),
        _table(("metric", "step", "latest value"), _latest_metrics(run)),
        _table(("data", "train", "held-out"), _data(config)),
        _table(("option", "value"), ((k, _text(v)) for k, v in flat(config).items())),
    ]
    return "\n\n".join(tables)


def _sizes(config: AnyNetworkConfig) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each depth, truncated to it, and one for the plain network."""
    whole = network_template(config)
    for depth in (*config.depths, "plain"):
        model = whole if depth == "plain" else eqx.filter_eval_shape(truncate, whole, depth)
        count = sum(leaf.size for leaf in jax.tree.leaves(model))
        yield str(depth), f"{count:,}", f"{velocity_flops(config, depth):,}"


def _checkpoints(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each complete checkpoint; incomplete ones are not named by a number."""
    complete = [path for path in folder.glob("*") if path.name.isdigit()]
    for path in sorted(complete, key=lambda path: int(path.name)):
        try:
            written = datetime.fromtimestamp(path.stat().st_mtime)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        except FileNotFoundError:  # the run has just replaced it by a newer one
            continue
        yield path.name, f"{written:%Y-%m-%d %H:%M:%S}", f"{size / 1e6:.1f}"


def _snapshots(run: Path) -> list[tuple[str, str, str]]:
    """Return a row for all snapshots of averages, if there are any."""
    rows = list(_checkpoints(run / SNAPSHOTS))
    size = sum(float(megabytes) for *_, megabytes in rows)
    return [(str(len(rows)), f"{rows[0][0]} to {rows[-1][0]}", f"{size:.1f}")] if rows else []


def _latest_metrics(run: Path) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each metric with the last step at which it was logged."""
    latest = {}
    for row in read_metrics(run):
        step = row.pop("step")
        latest |= {name: (step, value) for name, value in row.items()}
    for name, (step, value) in latest.items():
        yield name, str(step), "not finite" if value is None else f"{value:g}"


def _data(config: TrainConfig) -> Iterator[tuple[str, ...]]:
    """Yield a row for each property of the data, if they can be read on this machine."""
    try:
        train = config.data.open("train").describe()
        held_out = config.data.open("held-out").describe()
    except InputError as error:
        yield "not read", str(error)
        return
    yield from ((name, train[name], held_out[name]) for name in train)


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns of equal width, or say that there is nothing yet."""
    lines = [head, *rows]
    if len(lines) == 1:
        lines.append(("none yet",))
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )
