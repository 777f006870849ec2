"""Who teaches, where it is not the run's own average."""

import dataclasses
from pathlib import Path

from odelt_eqx.config import TrainConfig
from odelt_eqx.errors import InputError
from odelt_eqx.training.convert import fitted, read_weights
from odelt_eqx.training.step import TrainState


def with_teacher(state: TrainState, config: TrainConfig) -> TrainState:
    """Return `state` with the teacher that the run begins with, if it needs or asks for one.

    It is the average in `config.teacher`; without, and where the objective distils a trained
    network, the one in `config.init_from`. Either is asked as it was trained: with its own config.

    Raises:
        InputError: there is nothing to distil, or the teacher is of no use to the objective, or is
            a network for something else.
    """
    taught_by, name = config.objective.taught_by, type(config.objective).__name__
    distils = taught_by in ("frozen", "stages")
    source = config.teacher or (config.init_from if distils else None)
    if source is None:
        if distils:
            raise InputError("this objective distils a trained network; give teacher or init_from")
        return state
    if taught_by == "data":
        raise InputError(f"{name} learns from data alone; leave out teacher")
    _, teacher = read_weights(Path(source))
    for field in ("image_shape", "num_classes", "denoise_timesteps"):
        ours, theirs = getattr(config.model, field), getattr(teacher.config, field)
        if ours != theirs:
            raise InputError(f"teacher {source} has {field} {theirs}, not {ours}")
    if taught_by == "stages":  # the student's average, which sees no step, takes its place later
        if not teacher.config.ignore_step:
            raise InputError(f"teacher {source} was trained to see its step; distil a flow instead")
        teacher = fitted(teacher, state.ema, source)
    return dataclasses.replace(state, teacher=teacher)
