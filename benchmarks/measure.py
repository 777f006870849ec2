"""How every benchmark measures: warm, synchronised, contestants in turn, medians and ranges."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from odelt_eqx.files import write_json
from odelt_eqx.nn import DiTConfig
from odelt_eqx.parallel import describe_devices
from odelt_eqx.serialize import to_dict

Shape = tuple[int, int, int]
"""Depth, group and smallest depth of a network, in blocks."""
PUBLISHED: tuple[Shape, ...] = ((12, 4, 4), (28, 8, 12))
"""The published networks, B and XL."""


@dataclass(frozen=True)
class Output:
    """Where the rows go.

    Args:
        out: file for the rows as JSON; None writes none.
    """

    out: Path | None = None


@dataclass(frozen=True)
class Comparison(Output):
    """What most benchmarks are configured by.

    Args:
        hidden_size: width of a token, a multiple of 64.
        tokens: tokens of an image, a square number.
        rounds: how often each contestant is measured.
    """

    hidden_size: int = 256
    tokens: int = 64
    rounds: int = 7

    def network(self, shape: Shape, dtype: Literal["float32", "bfloat16"] = "float32") -> DiTConfig:
        """Return a network of the published proportions, for latents of 4 channels."""
        depth, group, depth_min = shape
        return DiTConfig(
            image_size=2 * math.isqrt(self.tokens),
            channels=4,
            patch_size=2,
            hidden_size=self.hidden_size,
            num_heads=self.hidden_size // 64,
            depth=depth,
            depth_min=depth_min,
            depth_group=group,
            num_classes=10,
            dtype=dtype,
        )


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
    """Time each contestant once a round, in turn, after a first call that does not count.

    Args:
        contestants: calls by name; their results are waited for.
        baseline: the contestant that the others are compared with, round by round.
        rounds: how often each is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds + 1):
        for name, call in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if index:
                seconds[name].append(time.perf_counter() - start)
    base = seconds[baseline]
    return {
        name: Timing(
            statistics.median(times),
            min(times),
            max(times),
            statistics.median(a / b for a, b in zip(times, base, strict=True)),
        )
        for name, times in seconds.items()
    }


class Report:
    """A table that is printed as it is measured, and written as JSON.

    Args:
        columns: names of the columns.
        config: the benchmark's; it is part of the JSON, which is written to its `out`.

    Attributes:
        rows: the rows so far, each by column, with the numbers as they are.
    """

    def __init__(self, columns: Sequence[str], config: Output):
        """Print the machine and the head of the table."""
        self._columns, self._config, self._machine = tuple(columns), config, machine()
        self.rows: list[dict[str, Any]] = []
        print(f"{self._machine}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")

    def row(self, *values: Any) -> None:
        """Add a row."""
        raw = [v._asdict() if isinstance(v, Timing) else v for v in values]
        self.rows.append(dict(zip(self._columns, raw, strict=True)))
        print(f"| {' | '.join(map(_format, values))} |", flush=True)
        if self._config.out is not None:
            config = to_dict(self._config)
            write_json(
                self._config.out, {"machine": self._machine, "config": config, "rows": self.rows}
            )


def _format(value: Any) -> str:
    """Return the text of a cell; times are in seconds and printed in milliseconds."""
    if isinstance(value, Timing):
        middle, low, high = (_round(1e3 * t) for t in (value.median, value.low, value.high))
        return f"{middle} ({low} to {high})"
    if value is None:
        return ""
    return _round(value) if isinstance(value, float) else str(value)


def _round(number: float) -> str:
    """Return three digits of a number, or all before its point."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def machine() -> str:
    """Return the devices and the versions that a result belongs to."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "equinox", "diffrax"))
    return f"{describe_devices()}, {packages}"


def use_virtual_devices(count: int) -> None:
    """Split the CPU into so many devices; call it before anything is computed."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
