"""Exceptions, and the checks that raise them for bad input."""

import dataclasses
import difflib
import math
import numbers
import operator
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Value = TypeVar("Value")
Bound = float | int | None

LARGEST_INTEGER, LARGEST_FLOAT = 2**31 - 1, 3.4e38
"""The largest numbers that arrays of 32 bits hold."""
LONGEST = 1000
"""Characters of a message, at most: names of unknown length come from files."""


class InputError(ValueError):
    """Bad input: one line says what came, what was expected and what to type.

    What a file says may be part of it, so line breaks and control characters are escaped.

    Example:
        >>> odelt.sample(model, noise, labels, depth=3)
        Traceback (most recent call last):
        odelt_eqx.errors.InputError: depth must be one of 2, 4 (in blocks); got 3
    """

    def __init__(self, message: str):
        shown = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
        escape = lambda c: c if c.isprintable() else c.encode("unicode_escape").decode()
        super().__init__("".join(map(escape, shown)))


class SolveError(RuntimeError):
    """An ODE solve did not finish: one line says on which axis and what to change.

    Example:
        >>> hurried = odelt.Adaptive(rtol=1e-6, atol=1e-6, max_steps=1)
        >>> odelt.sample(model, noise, labels, time=hurried)
        Traceback (most recent call last):
        odelt_eqx.errors.SolveError: the time axis needed more than 1 steps ...
    """


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
    """Return why something failed, as one line of at most 200 characters.

    Addresses of objects are left out. A key that is missing would be its name alone.
    """
    text = repr(error) if isinstance(error, KeyError) else str(error)
    text = re.sub(r"<?([\w.]+)(?: object)? at 0x[0-9a-fA-F]+>?", r"\1", text[:10_000])
    text = re.sub(r"0x[0-9a-fA-F]{6,}", "...", text)
    return (" ".join(text.split()) or type(error).__name__)[:200]


def check_range(
    owner: Any,
    *names: str,
    least: Bound = None,
    above: Bound = None,
    most: Bound = None,
    below: Bound = None,
) -> None:
    """Raise an InputError unless attributes of `owner` are finite and in an interval, or None."""
    for name in names:
        value = getattr(owner, name)
        if value is None:
            continue
        try:
            inside = (
                abs(value) < math.inf
                and (least is None or value >= least)
                and (above is None or value > above)
                and (most is None or value <= most)
                and (below is None or value < below)
            )
        except (TypeError, ValueError):  # a text, or an array of several numbers
            raise InputError(f"{name} must be a number; got {value!r}") from None
        if not inside:
            raise InputError(f"{name} must {_interval(least, above, most, below)}; got {value}")


def check_whole(owner: Any, *names: str) -> None:
    """Raise an InputError unless attributes of `owner` are integers, or None."""
    for name in names:
        value = getattr(owner, name)
        try:
            operator.index(0 if value is None else value)
        except TypeError:
            raise InputError(f"{name} must be a whole number; got {value}") from None


def check_numbers(value: Any, name: str = "") -> None:
    """Raise an InputError unless all numbers in dataclasses and tuples are of 32 bits and finite.

    Args:
        value: a number, or a dataclass, tuple or list that may hold some, at any depth; all else
            is passed over.
        name: what the message calls it.
    """
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            check_numbers(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(value, tuple | list):
        for item in value:
            check_numbers(item, name)
    elif isinstance(value, numbers.Integral) and abs(int(value)) > LARGEST_INTEGER:
        raise InputError(f"{name} must be an integer of at most {LARGEST_INTEGER:,}; it is larger")
    elif isinstance(value, numbers.Real) and not abs(float(value)) <= LARGEST_FLOAT:
        raise InputError(f"{name} must be a finite number of 32 bits; got {value}")


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
        raise InputError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}")


def check_choices(owner: Any) -> None:
    """Raise an InputError unless fields of a dataclass that are a Literal have a value of it."""
    for name, kind in declared_types(owner).items():
        if get_origin(kind) is Literal:
            check_choice(name, getattr(owner, name), get_args(kind))


def declared_types(owner: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass.

    Types that a module with `from __future__ import annotations` keeps as texts are looked up; one
    that cannot be looked up, as only type checkers import or subscript it, is Any.
    """
    declared = {field.name: field.type for field in dataclasses.fields(owner)}
    if any(isinstance(kind, str) for kind in declared.values()):
        try:
            found = get_type_hints(type(owner))
        except Exception:  # an annotation may be any expression
            found = dict.fromkeys(declared, Any)
        declared = {n: found[n] if isinstance(kind, str) else kind for n, kind in declared.items()}
    return declared


def find_by_name(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    """Return `known[name]`, or raise an InputError that suggests the closest name."""
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known)}"
    raise InputError(f"no {kind} is called {name!r}; {hint}")
