"""Entry point shared by all commands: how one is typed, and how it ends."""

import io
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from odelt_eqx.errors import (
    DivergedError,
    InputError,
    Interrupted,
    SolveError,
    reason,
)

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
"""The scripts of a clone, one a command."""
BROKEN_PIPE = 141
"""Exit status of a command whose output nobody reads any more, as shells report it."""
NARROWEST = 40
"""Columns that help is laid out for, at least: in fewer than five, laying it out never ends."""


def typed(name: str, *words: object) -> str:
    """Return a command as a person types it: `odelt NAME WORDS`.

    A person who runs a clone's script types `python scripts/NAME.py WORDS`.
    """
    program = ["python", _script(name)] if _is_script() else ["odelt", name]
    return shlex.join([*program, *map(str, words)])


def program(name: str) -> str:
    """Return what the help of a command calls it."""
    return _script(name) if _is_script() else f"odelt {name}"


def _is_script() -> bool:
    return Path(sys.argv[0]).resolve().parent == SCRIPTS


def _script(name: str) -> str:
    return str(Path(sys.argv[0]).with_name(f"{name}.py"))


def run_command(run: Callable[[], None]) -> None:
    """Run a command; errors of a user or the system become one line and exit status 2.

    A reader that closes the pipe early, as `head` does, ends it without a word, as it does other
    commands.
    """
    said = set()

    def note_once(message: Warning | str, *_: Any, **__: Any) -> None:
        if (text := str(message)) not in said:
            said.add(text)
            print(f"note: {text}", file=sys.stderr)

    warnings.showwarning = note_once
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    # Of closed streams there are none; a file that is opened later must not take their place.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            run()
        except SystemExit:  # of --help, whose text may not have been written yet
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        _flush_or_discard_output()
        sys.exit(BROKEN_PIPE)
    except Interrupted as error:
        _fail(str(error), error.status, "stopped")
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except (InputError, SolveError, DivergedError, Warning) as error:  # as `-W error` asks for
        _fail(str(error))
    except OSError as error:
        _fail(reason(error))
    except Exception as error:
        if (line := _lacks(error)) is None:
            raise
        _fail(line)


def _lacks(error: Exception) -> str | None:
    """Return what the machine lacks, in one line, if that may be why there was an error."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"out of memory ({reason(error)}): use a smaller batch (--batch-size), or train in "
            "parts (--accumulate)"
        )
    import jax  # here, as `odelt --help` needs none

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as missing:
        return (
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} finds no device here "
            f"({reason(missing)}): unset it, or set it to cpu"
        )
    return None


def _flush_or_discard_output() -> None:
    """Write what was printed, or throw it away, so that exiting does not try it once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int = 2, what: str = "error") -> None:
    """Print an error and exit; background threads of a failed write log nothing after it."""
    logging.disable()
    _flush_or_discard_output()
    print(f"{what}: {message}", file=sys.stderr)
    sys.exit(status)
