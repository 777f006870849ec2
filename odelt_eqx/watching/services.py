"""TensorBoard and Weights & Biases; each package is imported only where it is asked for."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing


class TensorBoard(AbstractContextManager):
    """Writes event files into a run's `tensorboard` folder; `tensorboard --logdir RUN` shows them.

    A context manager.
    """

    def __init__(self, run: Path, done: int, settings: Mapping[str, Any]):
        """Open the folder of `run`; TensorBoard hides what lies after step `done`."""
        from tensorboardX import SummaryWriter

        del settings  # RUN/config.json has them
        self._writer = SummaryWriter(
            str(run / "tensorboard"),
            purge_step=done + 1,
            flush_secs=10,
            filename_suffix=f".from-{done}",  # names of the same second would be one file
        )

    def __exit__(self, *_: object) -> None:
        """Write what is left and close the files."""
        self._writer.close()

    def write(self, step: int, **figures: float) -> None:
        """Write one scalar a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write an image."""
        self._writer.add_image(f"samples/{name}", image, step, dataformats="HWC")


class WeightsAndBiases(AbstractContextManager):
    """Sends figures and pictures to a run at Weights & Biases; a context manager.

    Project, entity and mode are taken from the environment as ever (`WANDB_PROJECT`, `WANDB_MODE`).
    A resumed run goes on with the one it began, whose id is in `wandb-id.txt`.
    """

    def __init__(self, run: Path, done: int, settings: Mapping[str, Any]):
        """Begin or go on; an InputError if Weights & Biases refuses."""
        import wandb
        from wandb.errors import Error

        del done  # the step is a figure of its own, so that it may go back after a crash
        path = run / "wandb-id.txt"
        try:
            self._run = wandb.init(
                id=path.read_text() if path.exists() else None,
                resume="allow",
                name=run.name,
                dir=str(run),
                config=dict(settings),
                settings=wandb.Settings(console="off"),
            )
        except Error as error:
            problem = " ".join(str(error).split())
            raise InputError(f"Weights & Biases: {problem} Or set WANDB_MODE=offline.") from None
        with replacing(path) as beside:
            beside.write_text(self._run.id)
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send what is left; the run counts as crashed if there was an error."""
        self._run.finish(exit_code=0 if kind is None else 1)

    def write(self, step: int, **figures: float) -> None:
        """Send the figures."""
        self._run.log({"step": step, **figures})

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Send an image."""
        self._run.log({"step": step, f"samples/{name}": self._image(image)})
