"""Logging of a run: its folder always, TensorBoard and Weights & Biases on request."""

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from odelt_eqx.config import LoggingConfig, TrainConfig
from odelt_eqx.errors import InputError, SolveError
from odelt_eqx.files import atomic_write, read_json_lines, read_text, write_text
from odelt_eqx.images import save_png, sheet
from odelt_eqx.network import Network
from odelt_eqx.noise import normal, sample_keys
from odelt_eqx.ode.plan import FixedSteps
from odelt_eqx.parallel import is_main_process, on_main_process
from odelt_eqx.sampling import sample

METRICS = "metrics.jsonl"
PREVIEWS = "previews"
COLUMNS = 10
PLOT_SIZE, PLOT_RANGE = 128, 3.0

RGB = UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class Logger(Protocol):
    """Records the metrics and images of a run."""

    def write(self, step: int, **metrics: float) -> None:
        """Record the metrics of a step."""

    def write_image(self, step: int, name: str, image: RGB) -> None:
        """Record an image of a step."""


class FolderLogger(AbstractContextManager):
    """Appends to `metrics.jsonl` and adds to `previews` in the run folder."""

    def __init__(self, run: Path, done: int):
        """Open the files of `run` and drop the metrics after step `done`, which will come again."""
        path = run / METRICS
        rows = (row for row in read_metrics(run) if row["step"] <= done)
        with atomic_write(path, wait=True) as temporary, temporary.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file = path.open("a")
        self._previews = run / PREVIEWS

    def write(self, step: int, **metrics: float) -> None:
        """Write one line, six digits per number and null if it is not finite, and flush it."""
        row = {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()

    def write_image(self, step: int, name: str, image: RGB) -> None:
        """Write `previews/NAME/STEP.png`."""
        folder = self._previews / name
        folder.mkdir(parents=True, exist_ok=True)
        save_png(image, folder / f"{step:07}.png")

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl`, each with its `step`; a metric is a number or None."""
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    for row in read_json_lines(run / METRICS):
        if number(row.get("step")) and all(v is None or number(v) for v in row.values()):
            yield row


class TensorBoardLogger(AbstractContextManager):
    """Writes event files into the run's `tensorboard` folder, for `tensorboard --logdir RUN`."""

    def __init__(self, run: Path, done: int, config: Mapping[str, Any]):
        """Open the folder of `run`; TensorBoard hides what was logged after step `done`."""
        from tensorboardX import SummaryWriter

        del config  # RUN/config.json has it
        self._writer = SummaryWriter(
            str(run / "tensorboard"),
            purge_step=done + 1,
            flush_secs=10,
            filename_suffix=f".from-{done}",  # two files of the same second would share a name
        )

    def write(self, step: int, **metrics: float) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def write_image(self, step: int, name: str, image: RGB) -> None:
        """Write an image."""
        self._writer.add_image(f"samples/{name}", image, step, dataformats="HWC")

    def __exit__(self, *_: object) -> None:
        """Flush and close the files."""
        self._writer.close()


class WandbLogger(AbstractContextManager):
    """Sends metrics and images to Weights & Biases.

    Project, entity and mode come from the environment, as usual (`WANDB_PROJECT`, `WANDB_MODE`). A
    resumed run continues its W&B run, whose id is in `wandb-id.txt`.
    """

    def __init__(self, run: Path, done: int, config: Mapping[str, Any]):
        """Start or resume the W&B run; an InputError if Weights & Biases refuses."""
        import wandb
        from wandb.errors import Error

        del done  # the step is a metric, so that it may go back after a crash
        path = run / "wandb-id.txt"
        try:
            self._run = wandb.init(
                id=read_text(path, "the id of a run").strip() if path.exists() else None,
                resume="allow",
                name=run.name,
                dir=str(run),
                config=dict(config),
                settings=wandb.Settings(console="off"),
            )
        except Error as error:
            problem = " ".join(str(error).split())
            raise InputError(f"Weights & Biases: {problem} Or set WANDB_MODE=offline.") from None
        write_text(path, self._run.id)
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def write(self, step: int, **metrics: float) -> None:
        """Send the metrics."""
        self._run.log({"step": step, **metrics})

    def write_image(self, step: int, name: str, image: RGB) -> None:
        """Send an image."""
        self._run.log({"step": step, f"samples/{name}": self._image(image)})

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send what is left; the W&B run counts as crashed if there was an error."""
        self._run.finish(exit_code=0 if kind is None else 1)


SERVICES = {"tensorboard": ("tensorboardX", TensorBoardLogger), "wandb": ("wandb", WandbLogger)}
"""The package that each service needs, and its logger."""


class AllLoggers:
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers

    def write(self, step: int, **metrics: float) -> None:
        """Record the metrics of a step."""
        for logger in self._loggers:
            logger.write(step, **metrics)

    def write_image(self, step: int, name: str, image: RGB) -> None:
        """Record an image of a step."""
        for logger in self._loggers:
            logger.write_image(step, name, image)


def check_installed(config: LoggingConfig) -> None:
    """Raise an InputError that gives the pip command if the package of a service is missing."""
    for name in config.to:
        package, _ = SERVICES[name]
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"logging.to {name} needs a package that is not installed: "
                f"pip install 'odelt-eqx[{name}]'"
            )


@contextmanager
def open_loggers(
    config: LoggingConfig, run: Path, done: int, settings: Mapping[str, Any]
) -> Iterator[Logger]:
    """Open the log in the run folder and the services that `config` names, in process 0.

    Args:
        done: steps done; what was logged of later ones will come again.
        settings: the config of the run, for services that show it.
    """
    loggers: list[Logger] = []
    with ExitStack() as stack:

        def open_all() -> None:
            loggers.append(stack.enter_context(FolderLogger(run, done)))
            for name in config.to:
                _, service = SERVICES[name]
                loggers.append(stack.enter_context(service(run, done, settings)))

        on_main_process(open_all)
        yield AllLoggers(loggers)


def log_previews(logger: Logger, config: TrainConfig, step: int, model: Network) -> None:
    """Log samples, always of the same noise and labels, at each depth and number of Euler steps.

    All else about how the network is run is as `config.sample` says, but that depths which are no
    deeper than its guide have none. Where a solve fails, a note takes the place of the samples.
    """
    logging, classes = config.logging, config.model.num_classes
    noise = normal(jax.random.key(config.seed), (logging.sample_count, *config.model.shape))
    labels = None if classes is None else jnp.arange(logging.sample_count) % classes
    keys = sample_keys(config.seed, jnp.arange(logging.sample_count))
    for depth in logging.sample_depths or config.model.depths:
        chosen = dataclasses.replace(config.sample, depth=depth)
        if chosen.guide_depth is not None and depth <= chosen.guide_depth:
            chosen = dataclasses.replace(chosen, depth_guidance=0.0)
        for steps in logging.sample_steps:
            time = FixedSteps(steps=steps)
            try:
                samples = np.asarray(sample(model, noise, labels, chosen, time=time, key=keys))
            except SolveError as error:
                if is_main_process():
                    print(f"note: no preview at depth {depth}: {error}", file=sys.stderr)
                continue
            images = samples if samples.ndim == 4 else plot_vectors(samples)
            image = sheet(images, min(COLUMNS, len(images)))
            logger.write_image(step, f"depth-{depth}-steps-{steps}", image)


def plot_vectors(vectors: Float[np.ndarray, "count size"]) -> Float[np.ndarray, "1 side side 1"]:
    """Return an image in [-1, 1] with a dot at the first and last value of each vector."""
    image = np.ones((1, PLOT_SIZE, PLOT_SIZE, 1), np.float32)
    places = (vectors[:, [0, -1]] / PLOT_RANGE + 1) / 2 * PLOT_SIZE
    inside = ((places >= 0) & (places < PLOT_SIZE)).all(axis=1)
    column, row = places[inside].astype(int).T
    image[0, PLOT_SIZE - 1 - row, column] = -1
    return image
