"""The one interface behind which all that follow a run stand."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from odelt_eqx.errors import InputError
from odelt_eqx.hosts import first_does
from odelt_eqx.watching.config import WatchConfig
from odelt_eqx.watching.folder import RunFolder
from odelt_eqx.watching.services import TensorBoard, WeightsAndBiases

EXTRAS = {"tensorboard": ("tensorboardX", TensorBoard), "wandb": ("wandb", WeightsAndBiases)}
"""The module that each service needs, and what speaks to it."""


@runtime_checkable
class Watcher(Protocol):
    """Follows a run."""

    def write(self, step: int, **figures: float) -> None:
        """Take the figures of a step."""

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Take what `name` looks like at a step."""


class Together:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]):
        """Pass on to each of `watchers`."""
        self._watchers = watchers

    def write(self, step: int, **figures: float) -> None:
        """Pass the figures on."""
        for watcher in self._watchers:
            watcher.write(step, **figures)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Pass the picture on."""
        for watcher in self._watchers:
            watcher.picture(step, name, image)


def check_installed(config: WatchConfig) -> None:
    """Raise an InputError with the command to give if a service's package is missing."""
    for name in config.to:
        module, _ = EXTRAS[name]
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"watch.to {name} needs a package that is not installed: "
                f"pip install 'odelt-eqx[{name}]'"
            )


@contextmanager
def watching(
    config: WatchConfig, run: Path, done: int, settings: Mapping[str, Any]
) -> Iterator[Watcher]:
    """Open the run folder's own log and the services that `config` names, in the first process.

    Args:
        config: which services.
        run: the run folder.
        done: steps that are done; what was written of later ones will come again.
        settings: the run's config, for services that show it.
    """
    watchers: list[Watcher] = []
    with ExitStack() as stack:

        def begin() -> None:
            watchers.append(stack.enter_context(RunFolder(run, done)))
            for name in config.to:
                _, service = EXTRAS[name]
                watchers.append(stack.enter_context(service(run, done, settings)))

        first_does(begin)
        yield Together(watchers)
