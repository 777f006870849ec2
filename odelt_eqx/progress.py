"""Progress bars: tqdm on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager

from tqdm import tqdm

from odelt_eqx.parallel import is_main_process

SECONDS_BETWEEN_LINES = 10.0
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(AbstractContextManager):
    """Shows how much is done, the rate, the time left and the latest metrics; a context manager.

    Where standard error is not a terminal it prints a line every ten seconds. Only process 0 shows
    anything.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        """Start at `done` of `total`."""
        self._name = self._label = name
        self._total, self._initial, self._done = total, done, done
        terminal = sys.stderr.isatty()
        self._prints = is_main_process() and not terminal
        self._bar = tqdm(
            desc=name,
            total=total,
            initial=done,
            disable=not (is_main_process() and terminal),
            dynamic_ncols=True,
        )
        self._began = self._printed = time.monotonic()
        self._printed_at = done
        self._metrics = ""

    def __exit__(self, *_: object) -> None:
        """Show the last state."""
        self._bar.close()
        if self._prints and self._printed_at != self._done:
            self._print()

    def show(self, **metrics: float | int) -> None:
        """Show metrics beside the progress from now on."""
        self._metrics = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._bar.set_postfix_str(self._metrics, refresh=False)

    def stage(self, name: str) -> None:
        """Show what is being done from now on, beside the name of it all."""
        self._label = f"{self._name}, {name}"
        self._bar.set_description_str(self._label)
        self._print_at_times()

    def expect(self, total: int) -> None:
        """Change how much there is to do."""
        self._total = self._bar.total = total

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self._done += count
        self._bar.update(count)
        self._print_at_times()

    def _print_at_times(self) -> None:
        if self._prints and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = time.monotonic(), self._done
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._printed - self._began,
            prefix=self._label,
            initial=self._initial,
            postfix=self._metrics,
            bar_format=LINE,
        )
        print(line, file=sys.stderr, flush=True)
