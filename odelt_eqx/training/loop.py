"""A training run from its config to its last checkpoint."""

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.config import TrainConfig, flat, save_config, to_dict
from odelt_eqx.data import ArraySource, open_source, stream
from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.training.checkpoint import CONFIG, Checkpoints, run_config
from odelt_eqx.training.convert import init_from
from odelt_eqx.training.optimizer import learning_rate, make_optimizer
from odelt_eqx.training.pace import Pace
from odelt_eqx.training.previews import Previews
from odelt_eqx.training.progress import Progress
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
        InputError: `run` exists and neither `resume` nor `overwrite` is given, there is nothing to
            resume, the config differs from the one that is resumed, or what is to watch is missing.
    """
    check_installed(config.watch)
    _check_folder(config, run, resume, overwrite)
    data, unseen = open_source(config.data, "train"), open_source(config.data, "held-out")
    _check_fits(config, data)
    init_key, train_key, held_out_key = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = make_optimizer(config.optimizer, config.steps)
    rate = learning_rate(config.optimizer, config.steps)
    state = init_state(config.model, optimizer, init_key)
    train_step = make_train_step(config.objective, optimizer, config.optimizer.ema, config.steps)
    batches = stream(data, config.batch_size, config.seed)
    held_out = _held_out_batch(unseen, config.seed)
    state = state if resume else _begun(state, config, run)

    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run))
        state = checkpoints.restore(state, batches) if resume else state
        done = int(state.step)
        log = stack.enter_context(watching(config.watch, run, done, to_dict(config)))
        progress = stack.enter_context(Progress("train", config.steps, done))
        previews = Previews(config, log, pace := Pace(config))
        for step in range(done + 1, config.steps + 1):
            batch = next(batches)
            key = jax.random.fold_in(train_key, step)
            state, metrics = train_step(state, batch["image"], batch["label"], key)
            pace.advance(metrics)
            progress.advance()
            last = step == config.steps
            if step % config.log_every == 0 or last:
                figures = {name: float(value) for name, value in metrics.items()}
                figures |= {"learning_rate": float(np.asarray(rate(step - 1))), **pace.figures()}
                log.write(step, **figures)
                progress.show(loss=figures["loss"])
            if step % config.eval_every == 0 or last:
                loss = held_out_loss(state, config.objective, *held_out, held_out_key, config.steps)
                log.write(step, held_out_loss=float(loss))
                pace.restart()
            previews.after(step, state.ema)
            if step % config.save_every == 0 or last:
                checkpoints.save(state, batches, config)
                pace.restart()
    return state


def _begun(state: TrainState, config: TrainConfig, run: Path) -> TrainState:
    """Begin the folder; return a fresh state with the weights and the teacher of the beginning."""
    state = init_from(state, Path(config.init_from)) if config.init_from else state
    state = with_teacher(state, config)
    _begin_folder(config, run)
    return state


def _check_fits(config: TrainConfig, data: ArraySource) -> None:
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


def _held_out_batch(source: ArraySource, seed: int) -> tuple[Images, Labels]:
    """Return up to 512 images and their labels, the same for the same seed."""
    batch = next(stream(source, min(len(source), 512), seed))
    return jnp.asarray(batch["image"]), jnp.asarray(batch["label"])


def _check_folder(config: TrainConfig, run: Path, resume: bool, overwrite: bool) -> None:
    """Raise an InputError unless `run` may be used as asked."""
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other; give one of them")
    if resume:
        _check_same(config, run)
        with Checkpoints(run) as checkpoints:
            if checkpoints.latest is None or not checkpoints.can_resume:
                raise InputError(
                    f"{run} has no checkpoint to resume; use --overwrite to start again"
                )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        if not overwrite:
            raise InputError(
                f"{run} exists; use --resume to go on with it, --overwrite to start again, or "
                "another folder"
            )
        run_config(run)  # raises unless it is a run: nothing else is ever deleted


def _begin_folder(config: TrainConfig, run: Path) -> None:
    """Make an empty run folder that holds the config."""
    if dead := config.model.dead_blocks:
        print(f"note: the last {dead} blocks belong to no full group: not run", file=sys.stderr)
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)
    with replacing(run / CONFIG) as beside:
        save_config(config, beside)


def _check_same(config: TrainConfig, run: Path) -> None:
    """Raise an InputError that names the first fields in which `config` is not the run's.

    What is watched may change: it is nothing of the run.
    """
    asked, saved = map(flat, (config, run_config(run)))
    different = [
        f"{name} is {asked.get(name)}, was {saved.get(name)}"
        for name in sorted(asked.keys() | saved.keys())
        if asked.get(name) != saved.get(name) and not name.startswith("watch.")
    ]
    if different:
        raise InputError(f"{run} was started with another config: {'; '.join(different[:5])}")
