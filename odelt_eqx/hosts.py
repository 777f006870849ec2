"""Several processes, on one machine or many, that work as one."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from odelt_eqx.errors import InputError

LONGEST = 4096
"""Bytes of a message that is passed on."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How this process finds the others that it works with; alone unless told.

    Args:
        cluster: the environment tells: SLURM, Open MPI, Kubernetes or a TPU pod started it.
        coordinator: address of process 0, HOST:PORT, where the environment does not tell.
        count: how many processes there are.
        index: which of them this is, from 0.
    """

    cluster: bool = False
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        """Check that it is told in one way."""
        given = [value is not None for value in (self.coordinator, self.count, self.index)]
        if any(given) and (self.cluster or not all(given)):
            raise InputError(
                "give either hosts.cluster or all of hosts.coordinator, hosts.count, hosts.index"
            )

    def join(self) -> None:
        """Wait for the other processes; before anything is computed.

        Raises:
            InputError: they do not answer, or the environment does not tell of them.
        """
        if not (self.cluster or self.coordinator):
            return
        try:
            jax.distributed.initialize(self.coordinator, self.count, self.index)
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"the other processes were not found: {reason}") from error


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def first_does(action: Callable[[], object]) -> None:
    """Let the first process act while the others wait; all raise the InputError that it meets."""
    problem = ""
    if is_first():
        try:
            action()
        except InputError as error:
            problem = str(error)
    problem = _told(problem)
    if problem:
        raise InputError(problem)


def largest(number: int) -> int:
    """Return the largest of the numbers that the processes have; all must ask."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.asarray(number))))


def first_says(numbers: np.ndarray) -> np.ndarray:
    """Return the first process's numbers in every process; all must ask, with as many."""
    if jax.process_count() == 1:
        return numbers
    return np.asarray(multihost_utils.broadcast_one_to_all(numbers))


def _told(message: str) -> str:
    """Return the first process's message in every process."""
    if jax.process_count() == 1:
        return message
    text = message.encode()[:LONGEST]
    padded = np.zeros(LONGEST, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return told.tobytes().rstrip(b"\0").decode(errors="replace")
