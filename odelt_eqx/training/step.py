"""One training step: a pure function from state and batch to state and metrics."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.objective.base import Networks, Objective, Targets, Teacher, TrainingTime
from odelt_eqx.sharding import kept
from odelt_eqx.training.guard import Guard, where
from odelt_eqx.training.microbatches import Mean, accumulate

Metrics = dict[str, Float[Array, ""]]
Images = Float[Array, "batch height width channels"]
Labels = Int[Array, " batch"]


class TrainState(eqx.Module):
    """Everything that training changes.

    Args:
        model: the weights that are trained.
        ema: their moving average: the teacher, and what is sampled from.
        opt_state: the optimiser's moments.
        step: steps done, the skipped ones included.
        teacher: a network that teaches in the average's place, or None.
        guard: counts the steps that were skipped.
    """

    model: DiT
    ema: DiT
    opt_state: optax.OptState
    step: Int[Array, ""]
    teacher: DiT | None = None
    guard: Guard = eqx.field(default_factory=Guard.fresh)


def init_state(
    config: DiTConfig, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """Return the state before the first step; the EMA is a copy of the fresh weights.

    Under `jit`, each device draws only what it keeps of it.
    """
    model = DiT(config, key=key)
    state = TrainState(
        model=model,
        ema=jax.tree.map(jnp.copy, model),
        opt_state=optimizer.init(eqx.filter(model, eqx.is_array)),
        step=jnp.zeros((), jnp.int32),
    )
    return kept(state)


def squared_error(
    model: DiT, targets: Targets, key: Key[Array, ""] | None = None
) -> Float[Array, " batch"]:
    """Return the mean squared error of the velocity, one per example.

    Args:
        model: the network.
        targets: what it should answer.
        key: dropout key, or None for no dropout.
    """
    velocity = model(
        targets.t,
        targets.x_t,
        targets.step_index,
        targets.labels,
        depth=targets.depth,
        key=key,
    )
    return jnp.mean((velocity - targets.velocity) ** 2, axis=(1, 2, 3))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema: float,
    steps: int,
    *,
    parts: int = 1,
    max_skipped: int = 10,
) -> Callable[[TrainState, Images, Labels, Key[Array, ""]], tuple[TrainState, Metrics]]:
    """Return the compiled training step, `(state, images, labels, key) -> (state, metrics)`.

    The state passed to it is donated: its buffers become the new state's. Where the loss or the
    gradient is not finite, the step only counts: weights, average and moments stay as they were.

    Args:
        objective: makes the targets.
        optimizer: turns gradients into updates.
        ema: decay of the moving average.
        steps: steps of the whole run, which schedules refer to.
        parts: how many parts a batch is trained in, one after the other.
        max_skipped: after so many skipped steps in a row, every step is skipped.

    Raises:
        InputError: the objective needs a teacher and the state has none.
    """

    @eqx.filter_jit(donate="all-except-first")
    def compiled(
        batch: tuple[Images, Labels, Key[Array, ""]], state: TrainState
    ) -> tuple[TrainState, Metrics]:
        images, labels, key = batch
        draw_key, dropout_key = jax.random.split(key)
        state = _with_current_teacher(state, objective, steps)
        targets = _targets(state, objective, images, labels, draw_key, steps)
        key = dropout_key if state.model.config.dropout > 0 else None
        if parts == 1:
            (_, value), gradient = _differentiated(state.model, targets, key, jnp.mean)
        else:
            (_, value), gradient = accumulate(_differentiated, state.model, targets, key, parts)
        norm = optax.tree.norm(gradient)  # not finite if any of the gradient is not
        taken, guard = state.guard.judge(jnp.isfinite(value) & jnp.isfinite(norm), max_skipped)
        weights = eqx.filter(state.model, eqx.is_array)
        updates, opt_state = optimizer.update(gradient, state.opt_state, weights)
        model = eqx.apply_updates(state.model, updates)
        average = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, state.ema, model)
        old = (state.model, state.ema, state.opt_state)
        model, average, opt_state = where(taken, (model, average, opt_state), old)
        metrics = {"loss": value, "grad_norm": norm, "skipped": guard.skipped.astype(jnp.float32)}
        new = TrainState(model, average, opt_state, state.step + 1, state.teacher, guard)
        return kept(new), metrics

    return lambda state, images, labels, key: compiled((images, labels, key), state)


@eqx.filter_value_and_grad(has_aux=True)
def _differentiated(
    model: DiT, targets: Targets, key: Key[Array, ""] | None, mean: Mean
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return what is minimised and the squared error, each `mean` of one per example."""
    errors = squared_error(model, targets, key)
    return mean(evened_out(errors, targets.power)), mean(errors)


@eqx.filter_jit
def held_out_loss(
    state: TrainState,
    objective: Objective,
    images: Images,
    labels: Labels,
    key: Key[Array, ""],
    steps: int,
) -> Float[Array, ""]:
    """Return the objective's loss of the trained weights on data they have not seen.

    The same key gives the same draws, so that values of one run can be compared; `steps` are those
    of the whole run.
    """
    state = _with_current_teacher(state, objective, steps)
    targets = _targets(state, objective, images, labels, key, steps)
    return jnp.mean(squared_error(state.model, targets))


def evened_out(
    errors: Float[Array, " batch"], power: Float[Array, " batch"] | None
) -> Float[Array, " batch"]:
    """Return `e / (e + 0.001) ** power`, the denominator a constant (arXiv 2505.13447, eq. 22).

    The gradient is that of the squared error times a weight that is small where the error is large:
    a power of 0 leaves it alone, 1 is close to that of the logarithm.
    """
    return errors if power is None else errors / jax.lax.stop_gradient(errors + 1e-3) ** power


def _targets(
    state: TrainState,
    objective: Objective,
    images: Images,
    labels: Labels,
    key: Key[Array, ""],
    steps: int,
) -> Targets:
    """Return what the objective makes of a batch at this step of the run."""
    chosen = state.teacher
    if chosen is None:
        chosen = state.model if objective.taught_by == "student" else state.ema
    networks = Networks(Teacher(state.model), Teacher(state.ema), Teacher(chosen))
    when = TrainingTime(state.step, steps)
    draws = objective.draw(key, len(labels), state.model.config, when)
    return objective.targets(draws, images, labels, networks)


def _with_current_teacher(state: TrainState, objective: Objective, steps: int) -> TrainState:
    """Return the state with a copy of the average as teacher if a stage begins here."""
    if objective.taught_by not in ("frozen", "stages"):
        return state
    if state.teacher is None:
        raise InputError(f"{objective} distils a trained network: give the state a teacher")
    if objective.taught_by == "frozen":
        return state
    begins = TrainingTime(state.step, steps).starts_stage(state.model.config.flow_index)
    teacher = jax.lax.cond(begins, lambda: state.ema, lambda: state.teacher)
    return dataclasses.replace(state, teacher=teacher)
