"""Checkpoints of a run: what training needs to go on, written whole or not at all."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import equinox as eqx
import grain
import jax
import orbax.checkpoint as ocp

from odelt_eqx.config import TrainConfig, load_config, to_dict
from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.serial import converter
from odelt_eqx.training.step import TrainState

Tree = TypeVar("Tree")
Weights = Literal["model", "ema"]

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


class Checkpoints(AbstractContextManager):
    """The checkpoints in a run folder, newest last; a context manager.

    Each holds the trained weights, their average, the optimiser's moments, the step, the place in
    the data, the config, and the teacher and its shape where there is one. Arrays are stored by
    their path in the tree, so no class of ours is needed to read them.
    """

    def __init__(self, run: Path, *, start: bool = True, keep: int = 2):
        """Open the checkpoints of `run`, or `start` them; the last `keep` are kept."""
        self._manager = ocp.CheckpointManager(
            (run / CHECKPOINTS).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                enable_async_checkpointing=False,
                create=start,
            ),
        )

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, stream: grain.DatasetIterator, config: TrainConfig) -> None:
        """Write a checkpoint of the step that `state` has reached."""
        items = {
            "model": ocp.args.StandardSave(_by_path(state.model)),
            "ema": ocp.args.StandardSave(_by_path(state.ema)),
            "optimizer": ocp.args.StandardSave(_by_path((state.opt_state, state.step))),
            "data": grain.checkpoint.CheckpointSave(stream),
            "config": ocp.args.JsonSave(to_dict(config)),
        }
        if state.teacher is not None:
            items["teacher"] = ocp.args.StandardSave(_by_path(state.teacher))
            items["teacher_config"] = ocp.args.JsonSave(
                converter().unstructure(state.teacher.config)
            )
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def save_weights(self, model: DiT, ema: DiT, config: TrainConfig) -> None:
        """Write weights alone, as step 0 of a run that can be sampled and built upon."""
        self._manager.save(
            0,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(_by_path(model)),
                ema=ocp.args.StandardSave(_by_path(ema)),
                config=ocp.args.JsonSave(to_dict(config)),
            ),
        )

    @property
    def can_resume(self) -> bool:
        """Whether the newest checkpoint has all that training needs to go on."""
        return all(map(self._holds, ("optimizer", "data")))

    def _holds(self, item: str) -> bool:
        """Whether the newest checkpoint has this item."""
        return (self._manager.directory / str(self.latest) / item).exists()

    def restore(self, state: TrainState, stream: grain.DatasetIterator) -> TrainState:
        """Return the newest checkpoint in the form of `state`, and move `stream` to its place.

        A teacher is read if the checkpoint has one, whatever its shape.
        """
        optimizer = (state.opt_state, state.step)
        found = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(
                model=_restore_args(state.model),
                ema=_restore_args(state.ema),
                optimizer=_restore_args(optimizer),
                data=grain.checkpoint.CheckpointRestore(stream),
            ),
        )
        opt_state, step = _from_paths(optimizer, found["optimizer"])
        return TrainState(
            model=_from_paths(state.model, found["model"]),
            ema=_from_paths(state.ema, found["ema"]),
            opt_state=opt_state,
            step=step,
            teacher=self.teacher(),
        )

    def teacher(self) -> DiT | None:
        """Return the teacher in the newest checkpoint, if any."""
        if not self._holds("teacher"):
            return None
        args = ocp.args.Composite(teacher_config=ocp.args.JsonRestore())
        shape = self._manager.restore(self.latest, args=args)["teacher_config"]
        template = _template(converter().structure(shape, DiTConfig))
        return self.restore_weights("teacher", template)

    def restore_weights(self, item: Weights | Literal["teacher"], template: DiT) -> DiT:
        """Return one set of weights of the newest checkpoint."""
        args = ocp.args.Composite(**{item: _restore_args(template)})
        return _from_paths(template, self._manager.restore(self.latest, args=args)[item])


def load(run: str | Path, weights: Weights = "ema") -> DiT:
    """Return the network of a run folder's newest checkpoint, config included.

    Args:
        run: a folder that training wrote.
        weights: the averaged weights, "ema", or those that were trained, "model".

    Raises:
        InputError: the folder is no run, or has no checkpoint yet.
    """
    template = _template(run_config(run).model)
    with _open(run) as checkpoints:
        return checkpoints.restore_weights(weights, template)


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


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _restore_args(tree: Any) -> ocp.args.StandardRestore:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    return ocp.args.StandardRestore(_by_path(shapes))


def _from_paths(template: Tree, leaves: dict[str, Any]) -> Tree:
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[p] for p in _by_path(template)])
