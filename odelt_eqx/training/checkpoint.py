"""The checkpoints of a run: written, kept and read.

Nothing else knows orbax, which is imported where it is used: it takes a third of a second.
"""

import errno
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from odelt_eqx.config import TrainConfig
from odelt_eqx.errors import InputError, reason
from odelt_eqx.interop.named import leaves_by_name
from odelt_eqx.nn import AnyNetworkConfig, DiT, VectorNet
from odelt_eqx.nn.groups import network_template
from odelt_eqx.parallel import on_main_process
from odelt_eqx.serialize import from_dict, to_dict
from odelt_eqx.training.average import PowerAverage, Profile
from odelt_eqx.training.step import TrainState

Value = TypeVar("Value")
AnyNetwork = DiT | VectorNet
Weights = Literal["model", "ema"]

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
DAMAGED = "damaged"


class Checkpoints(AbstractContextManager):
    """The checkpoints in a run folder; a context manager.

    Each holds the trained weights, the EMA weights, the optimizer state, the step (which is also
    the position in the data), the config, and, if there are any, the teacher with its config and
    other averages. Arrays are stored by their path in the tree, so reading them needs no class of
    this package, and whole, so they can be restored on other devices. All processes must open, save
    and read together.

    A checkpoint is written in the background under a temporary name. One that cannot be read is
    skipped in favour of the previous one, unless the machine lacks memory or open files: that error
    is raised. Snapshots of the averages are written in the same way, and all are kept; those of
    steps that are done again are deleted first.
    """

    def __init__(
        self,
        run: Path,
        *,
        write: bool = True,
        keep: int = 2,
        keep_every: int | None = None,
        snapshots: bool = False,
    ):
        """Open the checkpoints of `run`.

        Args:
            run: the run folder.
            write: also for writing: removes what a crash left half written.
            keep: number of newest checkpoints to keep.
            keep_every: keep checkpoints at multiples of it as well.
            snapshots: open the snapshots of averages as well.
        """
        from orbax.checkpoint import checkpoint_managers as managers

        self._run, self._writes, self._is_run = run, write, (run / CONFIG).is_file()
        self._silence = _silence_failed_writes()
        self._silence.__enter__()
        policies: list[managers.PreservationPolicy] = [managers.LatestN(keep)]
        if keep_every is not None:
            policies.append(managers.EveryNSteps(keep_every))
        self._manager = _open_manager(
            run / CHECKPOINTS, write, managers.AnyPreservationPolicy(policies)
        )
        self._snapshots, self._managers = None, [self._manager]
        if snapshots:
            self._snapshots = _open_manager(run / SNAPSHOTS, write)
            self._managers.append(self._snapshots)

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait for the last checkpoint and close the files."""
        try:
            self.wait()
        except InputError:
            if kind is None:  # otherwise it would hide the first error
                raise
        finally:
            for manager in self._managers:
                manager.close()
            self._silence.__exit__(None, None, None)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: TrainConfig) -> None:
        """Copy `state`, which may be donated afterwards, and start to write it.

        Raises:
            InputError: this checkpoint or the previous one cannot be written.
        """
        trees = {"model": state.model, "ema": state.ema, "optimizer": _optimizer_item(state)}
        dicts = {"config": to_dict(config)}
        teacher: Any = state.teacher
        if teacher is not None:
            trees["teacher"] = teacher
            dicts["teacher_config"] = to_dict(teacher.config, AnyNetworkConfig)
        if state.averages:
            trees["averages"] = state.averages
        if self._snapshots is not None:  # none that is older may be lost where this one is found
            with self._write_errors():
                self._snapshots.wait_until_finished()
        self._save(self._manager, int(state.step), trees, dicts)

    def save_snapshot(self, state: TrainState) -> None:
        """Copy the averages of `state`, which may be donated afterwards, and start to write them.

        Raises:
            InputError: this snapshot or the previous one cannot be written.
        """
        assert self._snapshots is not None  # for the type checker
        taken = int(state.step) - int(state.skips.total)
        if taken:
            widths = [average.width for average in state.averages]
            dicts = {"profile": {"taken": taken, "widths": widths}}
            self._save(self._snapshots, int(state.step), {"averages": state.averages}, dicts)

    def save_weights(self, model: AnyNetwork, ema: AnyNetwork, config: TrainConfig) -> None:
        """Save weights without an optimizer state, as step 0 of a run to sample or start from.

        Where one network is both the trained and the averaged one, it is written once, as "ema".
        """
        trees = {"ema": ema} if model is ema else {"model": model, "ema": ema}
        self._save(self._manager, 0, trees, {"config": to_dict(config)})

    def _save(self, manager: Any, step: int, trees: dict[str, Any], dicts: dict[str, Any]) -> None:
        from orbax.checkpoint import args

        items = {name: args.StandardSave(leaves_by_name(tree)) for name, tree in trees.items()}
        items |= {name: args.JsonSave(data) for name, data in dicts.items()}
        with self._write_errors():
            if self._is_run and not (self._run / CONFIG).is_file():
                raise OSError("its folder was moved or removed meanwhile")
            manager.save(step, args=args.Composite(**items))

    def check(self) -> None:
        """Raise an InputError if the last checkpoint could not be written; do not wait for it."""
        with self._write_errors():
            for manager in self._managers:
                if not manager.is_saving_in_progress():
                    manager.wait_until_finished()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; an InputError if it cannot be written."""
        with self._write_errors():
            for manager in self._managers:
                manager.wait_until_finished()

    def last_good(self) -> str:
        """Return a phrase that names the last complete checkpoint."""
        self.wait()
        return self._last_good()

    def _last_good(self) -> str:
        if self.latest is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {self.latest}"

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turn any error of a write into an InputError of one line."""
        try:
            yield
        except Exception as error:
            self._manager.reload()
            raise InputError(
                f"a checkpoint of {self._run} could not be written ({_reason(error)}); "
                f"{self._last_good()}"
            ) from error

    def restore(self, template: TrainState) -> TrainState:
        """Return the newest readable checkpoint, with the structure and sharding of `template`.

        A teacher is restored if the checkpoint has one, whatever its shape.

        Raises:
            InputError: no checkpoint can be read.
        """

        def read(step: int) -> TrainState:
            model = self._read(step, "model", template.model)
            ema = self._read(step, "ema", template.ema)
            opt_state, done, skips = self._read(step, "optimizer", _optimizer_item(template))
            teacher, averages = self._read_teacher(step), template.averages
            if averages:
                averages = self._read(step, "averages", averages)
            return TrainState(model, ema, opt_state, done, teacher, skips, averages)

        state = self._newest(read)
        if self._snapshots is not None:
            for step in self._snapshots.all_steps():
                if step > int(state.step):  # written again when the run gets there
                    self._snapshots.delete(step)
        return state

    def profiles(self) -> dict[int, Profile]:
        """Return what the snapshots of a run hold, by their steps, rising.

        Raises:
            InputError: one cannot be read.
        """
        from orbax.checkpoint import args

        asked = args.Composite(profile=args.JsonRestore())
        read = lambda step, manager: manager.restore(step, args=asked)["profile"]
        steps = sorted(self._snapshots.all_steps()) if self._snapshots is not None else []
        found = {step: self._read_snapshot(step, read) for step in steps}
        return {k: from_dict(v, Profile, f"the snapshot of step {k}") for k, v in found.items()}

    def restore_snapshot(
        self, step: int, widths: tuple[float, ...], network: AnyNetwork
    ) -> tuple[AnyNetwork, ...]:
        """Return the averages in the snapshot of a step, each with the structure of `network`.

        Raises:
            InputError: it cannot be read.
        """
        template = tuple(PowerAverage(network, width) for width in widths)
        read = lambda step, manager: self._read(step, "averages", template, manager)
        averages: Any = self._read_snapshot(step, read)
        return tuple(average.network for average in averages)

    def _read_snapshot(self, step: int, read: Callable[[int, Any], Value]) -> Value:
        try:
            return read(step, self._snapshots)
        except Exception as error:  # a damaged file raises errors of many kinds
            if _is_of_machine(error):
                raise
            path = self._run / SNAPSHOTS / str(step)
            raise InputError(
                f"the snapshot of step {step} cannot be read ({_reason(error)}); move {path} away "
                "to do without it"
            ) from error

    def restore_weights(self, item: Weights, template: AnyNetwork) -> AnyNetwork:
        """Return one set of weights of the newest readable checkpoint."""
        return self._newest(lambda step: self._read_network(step, self._kept(step, item), template))

    def _kept(self, step: int, item: Weights) -> Weights:
        """Return under which name weights are kept, see `save_weights`."""
        folder = self._run / CHECKPOINTS / str(step)
        both = any((folder / name).exists() for name in ("model", "optimizer"))
        return item if both else "ema"

    def restore_teacher(self) -> AnyNetwork | None:
        """Return the teacher in the newest readable checkpoint, if any."""
        return self._newest(self._read_teacher)

    def _newest(self, read: Callable[[int], Value]) -> Value:
        """Return `read(step)` for the newest checkpoint that can be read."""
        damaged: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                value = read(step)
            except Exception as error:  # a damaged file raises errors of many kinds
                if _is_of_machine(error):
                    raise
                damaged[step] = error
                continue
            for other, error in damaged.items():
                on_main_process(lambda: self._set_aside(other, step, error))  # noqa: B023
            if damaged:
                self._manager.reload()
            return value
        step, error = next(iter(damaged.items()))
        raise InputError(
            f"no checkpoint of {self._run} can be read; that of step {step}: {_reason(error)}"
        ) from error

    def _set_aside(self, step: int, used: int, error: Exception) -> None:
        """Report a damaged checkpoint and, if the run is being written, move it away."""
        moved = ""
        if self._writes:  # a new one of the same step will be written
            target = self._run / DAMAGED / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self._run / CHECKPOINTS / str(step)).rename(target)
            moved = f"; it is now {target}"
        print(
            f"note: the checkpoint of step {step} in {self._run} is damaged, that of step {used} "
            f"is used ({_reason(error)}){moved}",
            file=sys.stderr,
        )

    def _read(
        self,
        step: int,
        item: str,
        template: Value,
        manager: Any = None,
    ) -> Value:
        """Return a tree of a checkpoint in the structure of `template`, on the devices it is on."""
        from orbax.checkpoint import args

        device = SingleDeviceSharding(jax.local_devices()[0])

        def describe(leaf: Any) -> jax.ShapeDtypeStruct:
            sharding = leaf.sharding if isinstance(leaf, jax.Array) else device
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        paths = leaves_by_name(jax.tree.map(describe, template))
        asked = args.Composite(**{item: args.StandardRestore(paths)})
        leaves = (manager or self._manager).restore(step, args=asked)[item]
        return jax.tree.unflatten(jax.tree.structure(template), [leaves[path] for path in paths])

    def _read_network(self, step: int, item: str, template: AnyNetwork) -> AnyNetwork:
        """Return a network of a checkpoint, its arrays tied to no device."""
        network = self._read(step, item, template)
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), network)

    def _read_teacher(self, step: int) -> AnyNetwork | None:
        from orbax.checkpoint import args

        if not (self._run / CHECKPOINTS / str(step) / "teacher").exists():
            return None
        asked = args.Composite(teacher_config=args.JsonRestore())
        data = self._manager.restore(step, args=asked)["teacher_config"]
        config = from_dict(data, AnyNetworkConfig, "the teacher's config")
        return self._read_network(step, "teacher", network_template(config))


def _open_manager(path: Path, write: bool, policy: Any = None) -> Any:
    """Open the checkpoints in a folder, of which a policy says which to keep; by default all."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, cleanup_tmp_directories=write, create=write
    )
    return ocp.CheckpointManager(path.absolute(), options=options)


def _optimizer_item(state: TrainState) -> tuple[Any, ...]:
    """Return what only resuming needs."""
    return state.opt_state, state.step, state.skips


def _reason(error: Exception) -> str:
    """Return why reading or writing failed: the message of the operating system if there is one."""
    code = _error_code(error)
    return reason(error) if code is None else os.strerror(code)


def _error_code(error: Exception) -> int | None:
    """Return the number of the operating system's error that tensorstore passed on, if any."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None


def _is_of_machine(error: Exception) -> bool:
    """Whether reading failed for lack of memory or of open files, which says nothing of a file."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return True
    code = error.errno if isinstance(error, OSError) else _error_code(error)
    return code in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


@contextmanager
def _silence_failed_writes() -> Iterator[None]:
    """Keep the logs and warnings of a failed write from the terminal: its error is raised anyway.

    Orbax logs a failure several times, with tracebacks, and abandons the other writes of the
    checkpoint, which then complain about a closed event loop.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    previous_hook = sys.unraisablehook

    def is_news(record: logging.LogRecord) -> bool:
        return not ("orbax" in record.pathname or "never retrieved" in record.getMessage())

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous_hook(unraisable)

    for logger in loggers:
        logger.addFilter(is_news)
    sys.unraisablehook = hook
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
            yield
    finally:
        sys.unraisablehook = previous_hook
        for logger in loggers:
            logger.removeFilter(is_news)
