"""What a person sees of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager

from tqdm import tqdm

from odelt_eqx.hosts import is_first

SECONDS_BETWEEN_LINES = 10.0


class Progress(AbstractContextManager):
    """Shows how much is done, at what rate, what is left, and the latest figures.

    A context manager. On a terminal it is a tqdm bar; elsewhere it prints a line now and then. Only
    the first process shows anything.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        """Start at `done` of `total`."""
        self._bar = tqdm(
            desc=name,
            total=total,
            initial=done,
            disable=not (sys.stderr.isatty() and is_first()),
            dynamic_ncols=True,
        )
        self._prints = not sys.stderr.isatty() and is_first()
        self._name, self._total, self._initial, self._done = name, total, done, done
        self._began = self._printed = time.monotonic()
        self._printed_at = done
        self._figures = ""

    def __exit__(self, *_: object) -> None:
        """Leave the last state standing."""
        self._bar.close()
        if self._prints and self._printed_at != self._done:
            self._print()

    def show(self, **figures: float | int) -> None:
        """Show figures beside the progress from now on."""
        self._figures = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._bar.set_postfix_str(self._figures, refresh=False)

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self._done += count
        self._bar.update(count)
        if self._prints and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = time.monotonic(), self._done
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._printed - self._began,
            prefix=self._name,
            initial=self._initial,
            postfix=self._figures,
            bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        print(line, file=sys.stderr, flush=True)
