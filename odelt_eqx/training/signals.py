"""Orders to stop that come from outside: a key on the terminal, a scheduler that wants its node."""

import signal
import threading
from contextlib import AbstractContextManager
from typing import Any

import jax

from odelt_eqx.errors import Interrupted
from odelt_eqx.hosts import largest

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(AbstractContextManager):
    """Notes SIGTERM and SIGINT instead of dying of them; a context manager.

    The second one acts at once. Outside the main thread, where Python cannot watch for signals,
    nothing is noted.
    """

    def __init__(self) -> None:
        """Begin to watch when entered."""
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Begin to watch."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signals to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: object) -> None:
        self.received = signal.Signals(number)
        self.__exit__()

    def agreed(self, waiting: bool) -> bool:
        """Whether this process was told to stop, or another of the run that it works in.

        Args:
            waiting: whether the processes wait for each other now; only then several ask.
        """
        if jax.process_count() > 1 and not waiting:
            return False
        number = largest(self.received or 0)
        self.received = signal.Signals(number) if number else None
        return self.received is not None

    def leave(self, message: str) -> None:
        """Raise an `Interrupted` that says which signal it was, and `message`."""
        if self.received is not None:
            raise Interrupted(f"{self.received.name}: {message}", 128 + self.received)
