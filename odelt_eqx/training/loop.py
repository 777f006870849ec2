"""A training run from its config to its last checkpoint."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from odelt_eqx.config import TrainConfig, to_dict
from odelt_eqx.data import Batch, Batches, Loading, Source, open_source, stream
from odelt_eqx.errors import InputError
from odelt_eqx.hosts import first_does
from odelt_eqx.objective import TrainingTime
from odelt_eqx.progress import Progress
from odelt_eqx.sharding import check_batch, make_mesh, placed, spread_rows
from odelt_eqx.training.checkpoint import Checkpoints
from odelt_eqx.training.convert import init_from
from odelt_eqx.training.folder import begin_folder, check_folder, locked, write_config, writing
from odelt_eqx.training.guard import RecentBatches
from odelt_eqx.training.optimizer import learning_rate, make_optimizer
from odelt_eqx.training.pace import Pace
from odelt_eqx.training.previews import Previews
from odelt_eqx.training.signals import StopSignals
from odelt_eqx.training.step import (
    Images,
    Labels,
    TrainState,
    held_out_loss,
    init_state,
    make_train_step,
)
from odelt_eqx.training.teacher import with_teacher
from odelt_eqx.watching import check_installed, watching

HELD_OUT = 512
"""Examples that the held-out loss is taken from, at most."""


def train(
    config: TrainConfig, run: Path, *, resume: bool = False, overwrite: bool = False
) -> TrainState:
    """Train until `config.steps` and leave config, metrics and checkpoints in the folder `run`.

    A resumed run ends with the same parameters, bit for bit, as one that was never stopped.

    Args:
        config: what to train.
        run: the run folder.
        resume: go on from the newest checkpoint in `run`.
        overwrite: delete the run in `run` first.

    Returns:
        The last state.

    Raises:
        InputError: `run` cannot be begun or resumed as asked, or not be written; a package that
            watching needs is missing.
        DivergedError: too many steps in a row had a loss or a gradient that was not finite.
        Interrupted: SIGTERM or SIGINT came; the step was finished and saved.
    """
    check_installed(config.watch)
    first_does(lambda: check_folder(config, run, resume, overwrite))
    with jax.set_mesh(mesh := make_mesh(config.sharding)), ExitStack() as stack:
        job = _Job(config, first=not resume)
        checkpoints = stack.enter_context(_opened(config, run, resume))
        state = placed(checkpoints.restore(job.state), mesh) if resume else job.state
        done = int(state.step)
        log = stack.enter_context(watching(config.watch, run, done, to_dict(config)))
        progress = stack.enter_context(Progress("train", config.steps, done))
        stop = stack.enter_context(StopSignals())
        recent = RecentBatches(config.log_every)
        previews = Previews(config, log, pace := Pace(config))
        batches = stack.enter_context(closing(job.batches(done)))
        for step, batch in zip(range(done + 1, config.steps + 1), batches, strict=False):
            recent.add(step, batch["index"])
            state, metrics = job.step(state, batch, step)
            pace.advance(metrics)
            progress.advance()
            due = lambda every, step=step: step % every == 0 or step == config.steps
            saving = (stopping := stop.agreed(due(config.log_every))) or due(config.save_every)
            if saving or due(config.log_every):
                checkpoints.check()
                recent.check(state.guard, config.optimizer.max_skipped, step, checkpoints.last_good)
            if due(config.log_every):
                figures = job.figures(metrics, step)
                log.write(step, **figures, **pace.figures())
                progress.show(loss=figures["loss"])
            if due(config.eval_every):
                log.write(step, held_out_loss=job.held_out_loss(state))
                pace.restart()
            previews.after(step, state.ema)
            if saving:
                checkpoints.save(state, config)
                pace.restart()
            if stopping:
                break
        checkpoints.wait()
        stop.leave(f"step {int(state.step)} of {config.steps} is saved in {run}; --resume goes on")
    return state


@contextmanager
def _opened(config: TrainConfig, run: Path, resume: bool) -> Iterator[Checkpoints]:
    """Have the folder to ourselves, begun unless it is resumed, and open its checkpoints."""
    with writing(run), ExitStack() as stack:

        def begin() -> None:
            with writing(run):
                stack.enter_context(locked(run))
                (write_config if resume else begin_folder)(config, run)

        first_does(begin)
        yield stack.enter_context(Checkpoints(run, keep=config.keep, keep_every=config.keep_every))


class _Job:
    """What a config makes: the data, the first state and the compiled step."""

    def __init__(self, config: TrainConfig, *, first: bool):
        """Make them; the state is only one to read a checkpoint into unless it is the `first`."""
        self._config, self._mesh = config, jax.sharding.get_mesh()
        check_batch(config.batch_size, self._mesh)
        data, unseen = open_source(config.data, "train"), open_source(config.data, "held-out")
        _check_fits(config, data)
        keys = jax.random.split(jax.random.key(config.seed), 3)
        init_key, self._train_key, self._held_out_key = keys
        optimizer = make_optimizer(config.optimizer, config.steps)
        self._rate = learning_rate(config.optimizer, config.steps)
        state = eqx.filter_jit(init_state)(config.model, optimizer, init_key)
        if first and config.init_from:
            state = init_from(state, Path(config.init_from))
        if first:
            state = with_teacher(state, config)
        self.state = placed(state, self._mesh)
        self._train_step = make_train_step(
            config.objective,
            optimizer,
            config.optimizer.ema,
            config.steps,
            parts=config.accumulate,
            max_skipped=config.optimizer.max_skipped,
        )
        self._data = data
        size = min(len(unseen), HELD_OUT) // self._mesh.size * self._mesh.size
        self._check_held_out(size)
        with closing(self._stream(unseen, size, loading=Loading())) as batches:
            self._held_out = self._rows(next(batches))

    def _check_held_out(self, size: int) -> None:
        """Raise an InputError if the objective cannot be measured on so few examples."""
        config = self._config
        try:
            when = TrainingTime(self.state.step, config.steps)
            draw = lambda key: config.objective.draw(key, size, config.model, when)
            eqx.filter_eval_shape(draw, self._held_out_key)
        except InputError as error:
            raise InputError(
                f"{size} examples are held out, too few for this objective: {error}"
            ) from None

    def _stream(self, source: Source, size: int, start: int = 0, *, loading: Loading) -> Batches:
        """Return this process's share of the batches of a source."""
        own = {"process": jax.process_index(), "count": jax.process_count(), "loading": loading}
        return stream(source, size, self._config.seed, start=start, **own)

    def _rows(self, batch: Batch) -> tuple[Images, Labels]:
        """Return a batch on all devices, of which this process has read its share."""
        return spread_rows((batch["image"], batch["label"]), self._mesh)

    def batches(self, done: int) -> Batches:
        """Return the batches after `done` steps."""
        config = self._config
        return self._stream(self._data, config.batch_size, done, loading=config.loading)

    def step(self, state: TrainState, batch: Batch, step: int) -> tuple[TrainState, dict]:
        """Return the state and the metrics of `step`; `state` is donated."""
        key = jax.random.fold_in(self._train_key, step)
        return self._train_step(state, *self._rows(batch), key)

    def figures(self, metrics: dict[str, Array], step: int) -> dict[str, float]:
        """Return the metrics of `step` as numbers, and its learning rate."""
        figures = {name: float(value) for name, value in metrics.items()}
        # The schedule counts the steps that were taken; a skipped one did not move it.
        taken = max(step - 1 - int(figures["skipped"]), 0)
        return figures | {"learning_rate": float(np.asarray(self._rate(taken)))}

    def held_out_loss(self, state: TrainState) -> float:
        """Return the loss on data that training never sees."""
        objective, steps = self._config.objective, self._config.steps
        return float(held_out_loss(state, objective, *self._held_out, self._held_out_key, steps))


def _check_fits(config: TrainConfig, data: Source) -> None:
    """Raise an InputError if the network has another input or fewer classes than the data."""
    if config.model.image_shape != data.image_shape:
        raise InputError(
            f"the network takes images of shape {config.model.image_shape}, {config.data} has "
            f"{data.image_shape}; set model.image_size and model.channels to it"
        )
    if config.model.num_classes < data.num_classes:
        raise InputError(
            f"model.num_classes is {config.model.num_classes}, {config.data} has {data.num_classes}"
        )
