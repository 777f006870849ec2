"""How every benchmark measures: warm, synchronised, contestants in turn, medians and ranges."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from odelt_eqx.evaluation.devices import device
from odelt_eqx.files import replacing
from odelt_eqx.nn import DiTConfig


class Timing(NamedTuple):
    """Seconds of a contestant.

    Attributes:
        median: over the rounds.
        low: the least.
        high: the most.
        ratio: median over the rounds of its time over the baseline's in the same round.
    """

    median: float
    low: float
    high: float
    ratio: float


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], baseline: str, rounds: int
) -> dict[str, Timing]:
    """Time each contestant once a round, in turn, after one call that does not count.

    Args:
        contestants: name and call; what a call returns is waited for.
        baseline: the contestant that the others are compared with, round by round.
        rounds: how often each is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds + 1):
        for name, call in contestants.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if index:
                seconds[name].append(time.perf_counter() - began)
    base = seconds[baseline]
    return {
        name: Timing(
            statistics.median(own),
            min(own),
            max(own),
            statistics.median(a / b for a, b in zip(own, base, strict=True)),
        )
        for name, own in seconds.items()
    }


class Report:
    """A table that grows on the screen as it is measured, and is kept as JSON.

    Args:
        columns: what each row holds; JSON has the numbers as they are.
        config: what was asked for; it is part of the JSON.
        out: file to write the JSON to after each row, or None for none.

    Attributes:
        rows: what was measured so far, by column.
    """

    def __init__(self, columns: Sequence[str], config: Any, out: Path | None):
        """Print the machine and the head of the table."""
        self._columns, self._out = tuple(columns), out
        self.rows: list[dict[str, Any]] = []
        self._head = {"machine": machine(), "config": asdict(config)}
        print(f"{self._head['machine']}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")

    def row(self, *values: Any) -> None:
        """Add a row."""
        kept = [v._asdict() if isinstance(v, Timing) else v for v in values]
        self.rows.append(dict(zip(self._columns, kept, strict=True)))
        print(f"| {' | '.join(map(_cell, values))} |", flush=True)
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._out) as beside:
                found = {**self._head, "rows": self.rows}
                beside.write_text(json.dumps(found, indent=1, default=str) + "\n")


def network(hidden_size: int, tokens: int, depth: int, group: int, depth_min: int) -> DiTConfig:
    """Return a network of the published proportions.

    Args:
        hidden_size: width of a token, a multiple of 64.
        tokens: tokens of an image, a square number.
        depth: blocks.
        group: blocks per unit of length.
        depth_min: the smallest depth.
    """
    return DiTConfig(
        image_size=2 * math.isqrt(tokens),
        channels=4,
        patch_size=2,
        hidden_size=hidden_size,
        num_heads=hidden_size // 64,
        mlp_ratio=4,
        depth=depth,
        depth_min=depth_min,
        depth_group=group,
        num_classes=10,
    )


def _cell(value: Any) -> str:
    """Return a value as people read it; times come in seconds and are shown in milliseconds."""
    if isinstance(value, Timing):
        middle, low, high = (_short(1e3 * t) for t in (value.median, value.low, value.high))
        return f"{middle} ({low} to {high})"
    if value is None:
        return ""
    return _short(value) if isinstance(value, float) else str(value)


def _short(number: float) -> str:
    """Return three digits of a number, or all before its point."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def machine() -> str:
    """Return the device and the versions that a result belongs to."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "equinox", "diffrax"))
    return f"{device()}, {packages}"
