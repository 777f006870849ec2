"""How every script ends: with its result, or with one line that says what to change."""

import sys
from collections.abc import Callable

from odelt_eqx.errors import InputError, SolveError


def main(run: Callable[[], None]) -> None:
    """Run a script; a mistake of its user becomes one line and exit status 2, no traceback."""
    try:
        run()
    except (InputError, SolveError) as error:
        sys.exit(_report(str(error)))
    except KeyboardInterrupt:
        sys.exit(_report("interrupted", status=130))


def _report(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
