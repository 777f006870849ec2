"""The two ways in which this package says no."""


class InputError(ValueError):
    """What was asked for cannot be done: one line says what came, what fits and what to do."""


class SolveError(RuntimeError):
    """A solve did not reach its end: one line says on which axis and what to change."""
