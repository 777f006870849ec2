"""Checkpoints of a run: what training needs to go on, written whole or not at all."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from odelt_eqx.config import TrainConfig, load_config, to_dict
from odelt_eqx.errors import InputError
from odelt_eqx.hosts import first_does
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.nn.layout import unstacked
from odelt_eqx.serial import converter
from odelt_eqx.training.step import TrainState
from odelt_eqx.training.storage import by_path, from_paths, quietly, reason, restore_args

Value = TypeVar("Value")
Weights = Literal["model", "ema"]

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"


class Checkpoints(AbstractContextManager):
    """The checkpoints in a run folder; a context manager.

    Each holds the trained weights, their average, the optimiser's moments, the step, which is also
    the place in the data, the config, and the teacher and its shape where there is one. Arrays are
    stored by their path in the tree, so no class of ours is needed to read them, and whole, so they
    can be read on other devices than they were written from. All processes must open, save and
    read together.

    A checkpoint is written in the background, under a name that only a complete one loses. One that
    cannot be read is passed over for the one before it.
    """

    def __init__(
        self, run: Path, *, start: bool = True, keep: int = 2, keep_every: int | None = None
    ):
        """Open the checkpoints of `run` for reading, or `start` to write them.

        Args:
            run: the run folder.
            start: whether to write: it clears away what a crash has left half written.
            keep: newest checkpoints that are kept.
            keep_every: checkpoints at multiples of it are kept as well.
        """
        self._run, self._writes = run, start
        self._quiet = quietly()
        self._quiet.__enter__()
        policies: list[managers.PreservationPolicy] = [managers.LatestN(keep)]
        if keep_every is not None:
            policies.append(managers.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            (run / CHECKPOINTS).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=start,
                create=start,
            ),
        )

    def __exit__(self, kind: object, *_: object) -> None:
        """Finish what is being written and close the files."""
        try:
            self.wait()
        except InputError:
            if kind is None:  # else it would hide what went wrong first
                raise
        finally:
            self._manager.close()
            self._quiet.__exit__(None, None, None)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: TrainConfig) -> None:
        """Copy the step that `state` has reached, which may then be donated, and begin to write.

        Raises:
            InputError: this checkpoint or the one before cannot be written.
        """
        items = {
            "model": ocp.args.StandardSave(by_path(state.model)),
            "ema": ocp.args.StandardSave(by_path(state.ema)),
            "optimizer": ocp.args.StandardSave(by_path(_optimizer(state))),
            "config": ocp.args.JsonSave(to_dict(config)),
        }
        if state.teacher is not None:
            items["teacher"] = ocp.args.StandardSave(by_path(state.teacher))
            items["teacher_config"] = ocp.args.JsonSave(
                converter().unstructure(state.teacher.config)
            )
        with self._told():
            self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def save_weights(self, model: DiT, ema: DiT, config: TrainConfig) -> None:
        """Write weights alone, as step 0 of a run that can be sampled and built upon."""
        with self._told():
            self._manager.save(
                0,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(by_path(model)),
                    ema=ocp.args.StandardSave(by_path(ema)),
                    config=ocp.args.JsonSave(to_dict(config)),
                ),
            )

    def check(self) -> None:
        """Raise the InputError of a checkpoint that turned out not to be writable; do not wait."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is complete; an InputError if it cannot be written."""
        with self._told():
            self._manager.wait_until_finished()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn whatever a file system answers into one line."""
        try:
            yield
        except Exception as error:
            self._manager.reload()
            raise InputError(
                f"a checkpoint of {self._run} could not be written ({reason(error)}); "
                f"{self._saved()}"
            ) from error

    def last_good(self) -> str:
        """Say which checkpoint is the last complete one."""
        self.wait()
        return self._saved()

    def _saved(self) -> str:
        if self.latest is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {self.latest}"

    def restore(self, state: TrainState) -> TrainState:
        """Return the newest readable checkpoint in the form and place of `state`.

        A teacher is read if the checkpoint has one, whatever its shape.

        Raises:
            InputError: none can be read.
        """
        optimizer = _optimizer(state)

        def read(step: int) -> TrainState:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    model=restore_args(state.model),
                    ema=restore_args(state.ema),
                    optimizer=restore_args(optimizer),
                ),
            )
            opt_state, done, guard = from_paths(optimizer, found["optimizer"])
            return TrainState(
                model=from_paths(state.model, found["model"]),
                ema=from_paths(state.ema, found["ema"]),
                opt_state=opt_state,
                step=done,
                teacher=self._teacher(step),
                guard=guard,
            )

        return self._newest(read)

    def _newest(self, read: Callable[[int], Value]) -> Value:
        """Return what `read` makes of the newest checkpoint that it can read."""
        damaged: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                value = read(step)
            except Exception as error:  # whatever a damaged file makes of its reader
                damaged[step] = error
                continue
            for other, error in damaged.items():
                self._pass_over(other, step, error)
            return value
        step, error = next(iter(damaged.items()))
        raise InputError(
            f"no checkpoint of {self._run} can be read; that of step {step}: {reason(error)}"
        ) from error

    def _pass_over(self, step: int, instead: int, error: Exception) -> None:
        """Say that a checkpoint is damaged; where this run is written, set it aside."""

        def tell() -> None:
            aside = ""
            if self._writes:  # another of the same step is to come
                target = self._run / DAMAGED / str(step)
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                (self._run / CHECKPOINTS / str(step)).rename(target)
                aside = f"; it is now {target}"
            print(
                f"note: the checkpoint of step {step} in {self._run} is damaged, that of step "
                f"{instead} is used ({reason(error)}){aside}",
                file=sys.stderr,
            )

        first_does(tell)
        self._manager.reload()

    def teacher(self) -> DiT | None:
        """Return the teacher in the newest readable checkpoint, if any."""
        return self._newest(self._teacher)

    def _teacher(self, step: int) -> DiT | None:
        items = (self._run / CHECKPOINTS / str(step)).iterdir()
        if "teacher" not in {path.name for path in items}:
            return None
        args = ocp.args.Composite(teacher_config=ocp.args.JsonRestore())
        shape = self._manager.restore(step, args=args)["teacher_config"]
        template = _template(converter().structure(shape, DiTConfig))
        return self._weights(step, "teacher", template)

    def restore_weights(self, item: Weights, template: DiT) -> DiT:
        """Return one set of weights of the newest readable checkpoint."""
        return self._newest(lambda step: self._weights(step, item, template))

    def _weights(self, step: int, item: Weights | Literal["teacher"], template: DiT) -> DiT:
        args = ocp.args.Composite(**{item: restore_args(template)})
        restored = from_paths(template, self._manager.restore(step, args=args)[item])
        # Orbax ties arrays to a device: they could not be computed with on a mesh of several.
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), restored)


def load(run: str | Path, weights: Weights = "ema") -> DiT:
    """Return the network of a run folder's newest checkpoint, unstacked, config included.

    Args:
        run: a folder that training wrote.
        weights: the averaged weights, "ema", or those that were trained, "model".

    Raises:
        InputError: the folder is no run, or has no checkpoint yet.
    """
    template = _template(run_config(run).model)
    with _open(run) as checkpoints:
        return unstacked(checkpoints.restore_weights(weights, template))


def load_teacher(run: str | Path) -> DiT | None:
    """Return the network that teaches a run in its average's place, or None; as `load` does."""
    with _open(run) as checkpoints:
        return checkpoints.teacher()


def run_config(run: str | Path) -> TrainConfig:
    """Return the config of a run folder; an InputError if it is none."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise InputError(f"{run} is not a run folder: it has no {CONFIG}")
    return load_config(path)


def can_resume(run: Path) -> bool:
    """Whether a checkpoint of `run` is one of training, not of weights alone."""
    return any(run.glob(f"{CHECKPOINTS}/[0-9]*/optimizer"))


@contextmanager
def _open(run: str | Path) -> Iterator[Checkpoints]:
    """Open the checkpoints of a run that has some, for reading."""
    missing = InputError(f"{run} has no checkpoint yet")
    if not (Path(run) / CHECKPOINTS).is_dir():
        raise missing
    with Checkpoints(Path(run), start=False) as checkpoints:
        if checkpoints.latest is None:
            raise missing
        yield checkpoints


def _template(config: DiTConfig) -> DiT:
    """Return the network with shapes for arrays."""
    return eqx.filter_eval_shape(DiT, config, key=jax.random.key(0))


def _optimizer(state: TrainState) -> tuple[Any, ...]:
    """Return what only going on needs, in the form of the checkpoint's item."""
    return state.opt_state, state.step, state.guard
