"""The ways in which this package says no, and how it leaves when it is told to."""


class InputError(ValueError):
    """What was asked for cannot be done: one line says what came, what fits and what to do."""


class SolveError(RuntimeError):
    """A solve did not reach its end: one line says on which axis and what to change."""


class DivergedError(RuntimeError):
    """Training cannot go on: one line says at which step, on what data, and what is saved."""


class Interrupted(KeyboardInterrupt):
    """Work stopped because a signal asked for it; one line says what is saved.

    Args:
        message: that line.
        status: the exit status of a process that ends by it, 128 plus the signal's number.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
