"""How every benchmark measures: warm, synchronised, contestants in turn, medians and ranges."""

import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax

from odelt_eqx.evaluation.devices import device


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


def machine() -> str:
    """Return the device and the versions that a result belongs to."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "equinox", "diffrax"))
    return f"{device()}, {packages}"
