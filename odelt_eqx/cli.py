"""How every script begins and ends: with a preset, and with a result or one plain line."""

import logging
import sys
import warnings
from collections.abc import Callable

from odelt_eqx.config import TrainConfig
from odelt_eqx.errors import DivergedError, InputError, Interrupted, SolveError
from odelt_eqx.hosts import is_first
from odelt_eqx.presets import of_type, preset


def preset_of_command_line() -> tuple[str, TrainConfig, list[str]]:
    """Return the preset that the first word names ("digits" if it names none), and the other words.

    Raises:
        InputError: there is no such preset; the nearest is suggested.
    """
    words = sys.argv[1:]
    name = words.pop(0) if _begins_with_name(words) else "digits"
    return name, preset(name), words


def run_of_command_line() -> tuple[str, TrainConfig, list[str]]:
    """Return as `preset_of_command_line` does; a second word may name another training type.

    Raises:
        InputError: there is no such preset or training type; the nearest is suggested.
    """
    name, config, words = preset_of_command_line()
    if not _begins_with_name(words):
        return name, config, words
    return f"{name}-{words[0]}", of_type(config, words[0]), words[1:]


def _begins_with_name(words: list[str]) -> bool:
    """Whether the first word is neither an option nor the choice of a type."""
    return bool(words) and not words[0].startswith("-") and ":" not in words[0]


def tell(*lines: object) -> None:
    """Print results, one a line, in the first process alone."""
    if is_first():
        print(*lines, sep="\n")


def main(run: Callable[[], None]) -> None:
    """Run a script; a mistake of its user becomes one line and exit status 2, no traceback."""
    warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
    try:
        run()
    except (InputError, SolveError, DivergedError) as error:
        sys.exit(_report(str(error)))
    except Interrupted as order:
        print(f"stopped: {order}", file=sys.stderr)
        sys.exit(order.status)
    except KeyboardInterrupt:
        sys.exit(_report("interrupted", status=130))


def _report(message: str, status: int = 2) -> int:
    """Say what went wrong; threads that a failed write has left behind say no more after it."""
    logging.disable()
    print(f"error: {message}", file=sys.stderr)
    return status
