"""A training run, from its config to its last checkpoint."""

from contextlib import ExitStack, closing
from functools import lru_cache, partial
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Key

from odelt_eqx.condition import Condition
from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.data import Batch, Source, stream
from odelt_eqx.errors import InputError
from odelt_eqx.nn.config import NetworkConfig
from odelt_eqx.objective import Objective, TrainingTime
from odelt_eqx.parallel import check_batch_size, make_mesh, on_main_process, place, shard_batch
from odelt_eqx.progress import Progress
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.logging import check_installed, log_previews, open_loggers
from odelt_eqx.training.optimizer import ema_decay, learning_rate, make_optimizer
from odelt_eqx.training.run_folder import check_run_folder, open_run
from odelt_eqx.training.signals import StopSignals
from odelt_eqx.training.skips import RecentBatches
from odelt_eqx.training.step import (
    TrainState,
    TrainStep,
    held_out_loss,
    init_state,
    make_train_step,
)
from odelt_eqx.training.throughput import Throughput
from odelt_eqx.training.weights import add_teacher, init_from

HELD_OUT = 512
"""The largest number of examples that the held-out loss is measured on."""


def train(
    config: TrainConfig, run: str | Path, *, resume: bool = False, overwrite: bool = False
) -> TrainState:
    """Train until `config.steps`; leave config, metrics and checkpoints in the folder `run`.

    A resumed run ends with the same parameters, bit-for-bit, as an uninterrupted one.

    Args:
        resume: continue from the newest checkpoint in `run`.
        overwrite: delete the run in `run` first.

    Raises:
        InputError: the run cannot be started or resumed as asked, its folder cannot be written, or
            a package that logging needs is not installed.
        DivergedError: the loss or its gradient was not finite in too many steps in a row.
        Interrupted: SIGTERM or SIGINT came; the step was finished and saved.

    Example:
        >>> config = dataclasses.replace(odelt.preset("moons"), steps=2, batch_size=16)
        >>> state = odelt.train(config, "runs/moons")
        >>> odelt.load("runs/moons").shape
        (2,)
    """
    run = Path(run)
    check_installed(config.logging)
    if not resume:
        config.data.check_outside(run)
    on_main_process(lambda: check_run_folder(config, run, resume, overwrite))
    mesh = make_mesh(config.sharding)
    check_batch_size(config.batch_size, mesh)

    open_stream = partial(
        stream, seed=config.seed, process=jax.process_index(), count=jax.process_count()
    )

    def to_devices(batch: Batch) -> tuple[Array, Condition | None]:
        condition = None if config.model.condition_type is None else batch["condition"]
        return shard_batch((batch["x"], condition), mesh)

    with jax.set_mesh(mesh), ExitStack() as stack:
        data = config.data.open("train")
        unseen = config.data.open("held-out")
        if not resume:  # what the data of a run that goes on must be is checked with its folder
            _check_fits(config, data, unseen)

        init_key, train_key, held_out_key = jax.random.split(jax.random.key(config.seed), 3)
        rate = learning_rate(config.optimizer, config.steps)
        state = place(_first_state(config, init_key, fresh=not resume), mesh)
        train_step = _train_step(
            config.objective,
            config.optimizer,
            config.steps,
            averaged=config.init_from is not None,
            parts=config.accumulate,
            frozen=config.frozen,
        )

        size = min(len(unseen), HELD_OUT) // mesh.size * mesh.size
        _check_held_out(config, state, size, held_out_key)
        with closing(open_stream(unseen, size)) as batches:
            held_out = to_devices(next(batches))

        checkpoints = stack.enter_context(open_run(config, run, resume, overwrite, data.contents))
        if resume:
            state = place(checkpoints.restore(state), mesh)
        done = int(state.step)
        logger = stack.enter_context(open_loggers(config.logging, run, done, to_dict(config)))
        progress = stack.enter_context(Progress("train", config.steps, done))
        signals = stack.enter_context(StopSignals())
        batches = open_stream(data, config.batch_size, start=done, loading=config.loading)
        stack.callback(batches.close)
        throughput = Throughput(config, done)
        recent = RecentBatches(config.log_every)

        for step, batch in zip(range(done + 1, config.steps + 1), batches, strict=False):
            recent.add(step, batch["index"])
            key = jax.random.fold_in(train_key, step)
            state, metrics = train_step(state, *to_devices(batch), key)
            throughput.advance(metrics)
            progress.advance()

            last = step == config.steps
            logs = last or step % config.log_every == 0
            stops = signals.agreed(waiting=logs)
            saves = last or stops or step % config.save_every == 0
            if logs or saves:
                checkpoints.check()
                recent.check(state.skips, config.optimizer.max_skipped, step, checkpoints.last_good)
            if logs:
                values = {name: float(value) for name, value in metrics.items()}
                # The schedule counts the steps taken: a skipped one does not advance it.
                taken = max(step - 1 - int(values["skipped"]), 0)
                values["learning_rate"] = float(np.asarray(rate(taken)))
                logger.write(step, **values, **throughput.metrics())
                progress.show(loss=values["loss"])
            if last or step % config.eval_every == 0:
                loss = held_out_loss(state, config.objective, *held_out, held_out_key, config.steps)
                logger.write(step, held_out_loss=float(loss))
                throughput.restart()
            if config.logging.sample_every and step % config.logging.sample_every == 0:
                log_previews(logger, config, step, state.ema)
                throughput.restart()
            if config.snapshot_every and (last or step % config.snapshot_every == 0):
                checkpoints.save_snapshot(state)
                throughput.restart()
            if saves:
                checkpoints.save(state, config)
                throughput.restart()
            if stops:
                break

        checkpoints.wait()
        signals.leave(
            f"step {int(state.step)} of {config.steps} is saved in {run}; use --resume to continue"
        )
    return state


def _check_fits(config: TrainConfig, data: Source, unseen: Source) -> None:
    """Raise an InputError if the network has another shape or other classes than the data."""
    model = config.model
    if unseen.shape != data.shape:
        raise InputError(
            f"{config.data} has held-out examples of shape {unseen.shape}, and others of shape "
            f"{data.shape}: give held-out ones of the same shape"
        )
    if model.shape != data.shape:
        raise InputError(
            f"the network takes examples of shape {model.shape}, {config.data} has {data.shape}; "
            f"give {_shape_options(model, data.shape)}"
        )
    if model.condition_size is not None:
        raise InputError(
            f"the network takes vectors as its condition, {config.data} has classes: give "
            "num_classes in place of condition_size, or train on arrays by odelt.make_train_step"
        )
    if model.num_classes not in (None, data.num_classes) and model.learned != "null":
        raise InputError(
            f"the network has {model.num_classes} classes, {config.data} has {data.num_classes}; "
            f"give --model.num-classes {data.num_classes}"
        )


def _shape_options(model: NetworkConfig, shape: tuple[int, ...]) -> str:
    """Return what gives a network this shape on the command line."""
    if len(model.shape) != len(shape):
        return "a preset whose network takes it, such as digits for images and moons for vectors"
    if len(shape) == 1:
        return f"--model.size {shape[0]}"
    height, width, channels = shape
    size = f"{height}" if height == width else f"{height} {width}"
    return f"--model.image-size {size} --model.channels {channels}"


@lru_cache(maxsize=8)
def _train_step(
    objective: Objective,
    optimizer: OptimizerConfig,
    steps: int,
    averaged: bool,
    parts: int,
    frozen: tuple[str, ...],
) -> TrainStep:
    """Return the training step of such runs: the next one in this process compiles nothing."""
    return make_train_step(
        objective,
        make_optimizer(optimizer, steps),
        steps=steps,
        ema=ema_decay(optimizer, steps, averaged),
        parts=parts,
        max_skipped=optimizer.max_skipped,
        frozen=frozen,
        checked=False,  # the data were, when they were opened
    )


def _first_state(config: TrainConfig, key: Key[Array, ""], fresh: bool) -> TrainState:
    """Return the state before the first step, of which a run that resumes uses the structure."""
    widths = config.optimizer.average_widths if config.snapshot_every else ()
    state = _draw_state(key, config.model, config.optimizer, config.steps, config.frozen, widths)
    if fresh and config.init_from:
        state = init_from(state, config.init_from, config.frozen)
    return add_teacher(state, config) if fresh else state


@eqx.filter_jit  # so that each device draws only what it holds
def _draw_state(
    key: Key[Array, ""],
    model: NetworkConfig,
    optimizer: OptimizerConfig,
    steps: int,
    frozen: tuple[str, ...],
    widths: tuple[float, ...],
) -> TrainState:
    """Return a state with random weights."""
    return init_state(model.build(key=key), make_optimizer(optimizer, steps), frozen, widths)


def _check_held_out(config: TrainConfig, state: TrainState, size: int, key: Key[Array, ""]) -> None:
    """Raise an InputError if the objective cannot be measured on `size` examples."""
    time = TrainingTime(state.step, config.steps)
    try:
        eqx.filter_eval_shape(config.objective.draw, key, size, state.model, time)
    except InputError as error:
        raise InputError(
            f"{size} examples are held out, too few to measure this objective on ({error}): raise "
            "--data.held-out.share, or give more data"
        ) from None
