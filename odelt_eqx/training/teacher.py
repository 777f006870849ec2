"""Who teaches, where it is not the run's own average."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from odelt_eqx.config import TrainConfig
from odelt_eqx.errors import InputError
from odelt_eqx.training.convert import fitted, read_weights
from odelt_eqx.training.step import TrainState


def with_teacher(state: TrainState, config: TrainConfig) -> TrainState:
    """Return `state` with the teacher that the run begins with, if it needs or asks for one.

    It is the average of the weights in `config.teacher`; without, and where the objective distils a
    trained network, it is a copy of the average of those that the run begins from.

    Raises:
        InputError: there is nothing to distil, or the teacher is of no use to the objective, or is
            a network for something else.
    """
    taught_by, name = config.objective.taught_by, type(config.objective).__name__
    if config.teacher is None:
        if taught_by not in ("frozen", "stages"):
            return state
        if config.init_from is None:
            raise InputError("this objective distils a trained network; give teacher or init_from")
        return dataclasses.replace(state, teacher=jax.tree.map(jnp.copy, state.ema))
    if taught_by == "data":
        raise InputError(f"{name} learns from data alone; leave out teacher")
    _, teacher = read_weights(Path(config.teacher))
    for field in ("image_shape", "num_classes", "denoise_timesteps"):
        ours, theirs = getattr(config.model, field), getattr(teacher.config, field)
        if ours != theirs:
            raise InputError(f"teacher {config.teacher} has {field} {theirs}, not {ours}")
    if taught_by == "stages":  # the student's average takes its place later
        teacher = fitted(teacher, state.ema, config.teacher)
    return dataclasses.replace(state, teacher=teacher)
