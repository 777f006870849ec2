"""SIGTERM and SIGINT: finish the step, save, and leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax

from odelt_eqx.errors import Interrupted
from odelt_eqx.parallel import max_over_processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(AbstractContextManager):
    """Records SIGTERM and SIGINT instead of dying of them; a context manager.

    A second signal acts at once. Outside the main thread, where Python cannot handle signals,
    none is recorded.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _record(self, number: int, _frame: object) -> None:
        self.received = signal.Signals(number)
        self.__exit__()

    def agreed(self, waiting: bool) -> bool:
        """Whether any process of the run has received a signal.

        Args:
            waiting: whether the processes wait for each other at this step. In a distributed run
                the answer is False at every other step.
        """
        if jax.process_count() > 1 and not waiting:
            return False
        number = max_over_processes(self.received or 0)
        self.received = signal.Signals(number) if number else None
        return self.received is not None

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Within it a signal raises an `Interrupted` where the work is, which loses nothing.

        For a long piece of work that asks nobody in between. In a distributed run, whose processes
        must leave together, signals are recorded all the same.
        """
        single = jax.process_count() == 1
        if single:
            self.leave(message)

        def stop(number: int, _frame: object) -> None:
            self._record(number, None)
            self.leave(message)

        handlers = {n: signal.signal(n, stop) for n in self._previous} if single else {}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                if number in self._previous:  # after a signal, the next one acts as it usually does
                    signal.signal(number, handler)

    def leave(self, message: str) -> None:
        """Raise an `Interrupted` that names the signal, if there was one."""
        if self.received is not None:
            raise Interrupted(f"{self.received.name}: {message}", 128 + self.received)
