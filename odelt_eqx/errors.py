"""Exceptions, and the checks that raise them for bad input."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")
Bound = float | int | None


class InputError(ValueError):
    """Bad input: one line says what came, what was expected and what to type."""


class SolveError(RuntimeError):
    """An ODE solve did not finish: one line says on which axis and what to change."""


class DivergedError(RuntimeError):
    """Training diverged: one line says at which step, on which examples, and what is saved."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work; one line says what is saved.

    Args:
        message: that line.
        status: exit status of the process, 128 plus the number of the signal.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def reason(error: BaseException) -> str:
    """Return why something failed, as one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def check_range(
    owner: Any,
    *names: str,
    least: Bound = None,
    above: Bound = None,
    most: Bound = None,
    below: Bound = None,
) -> None:
    """Raise an InputError unless attributes of `owner` lie in an interval or are None."""
    for name in names:
        value = getattr(owner, name)
        if value is None:
            continue
        inside = (
            (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not inside:
            raise InputError(f"{name} must {_interval(least, above, most, below)}; got {value}")


def _interval(least: Bound, above: Bound, most: Bound, below: Bound) -> str:
    """Return an interval in words."""
    low, high = (above if least is None else least), (below if most is None else most)
    if low is not None and high is not None:
        return f"lie in {'(' if least is None else '['}{low}, {high}{')' if most is None else ']'}"
    if least is not None:
        return "not be negative" if least == 0 else f"be at least {least}"
    if above is not None:
        return "be positive" if above == 0 else f"be greater than {above}"
    return f"be {'less than' if most is None else 'at most'} {high}"


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise an InputError unless `value` is one of the known names."""
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def find_by_name(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    """Return `known[name]`, or raise an InputError that suggests the closest name."""
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known)}"
    raise InputError(f"no {kind} is called {name!r}; {hint}")
