"""One training step: a pure function from state and batch to state and metrics."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.objective.base import Objective, Targets, Teacher

Metrics = dict[str, Float[Array, ""]]
Images = Float[Array, "batch height width channels"]
Labels = Int[Array, " batch"]


class TrainState(eqx.Module):
    """Everything that training changes.

    Args:
        model: the weights that are trained.
        ema: their moving average: the teacher, and what is sampled from.
        opt_state: the optimiser's moments.
        step: steps taken.
    """

    model: DiT
    ema: DiT
    opt_state: optax.OptState
    step: Int[Array, ""]


def init_state(
    config: DiTConfig, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """Return the state before the first step; the EMA is a copy of the fresh weights."""
    model = DiT(config, key=key)
    return TrainState(
        model=model,
        ema=jax.tree.map(jnp.copy, model),
        opt_state=optimizer.init(eqx.filter(model, eqx.is_array)),
        step=jnp.zeros((), jnp.int32),
    )


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
    objective: Objective, optimizer: optax.GradientTransformation, ema: float
) -> Callable[[TrainState, Images, Labels, Key[Array, ""]], tuple[TrainState, Metrics]]:
    """Return the compiled training step, `(state, images, labels, key) -> (state, metrics)`.

    The state passed to it is donated: its buffers become the new state's.

    Args:
        objective: makes the targets, with the EMA as teacher.
        optimizer: turns gradients into updates.
        ema: decay of the moving average.
    """

    @eqx.filter_jit(donate="all-except-first")
    def compiled(
        batch: tuple[Images, Labels, Key[Array, ""]], state: TrainState
    ) -> tuple[TrainState, Metrics]:
        images, labels, key = batch
        config = state.model.config
        draw_key, dropout_key = jax.random.split(key)
        draws = objective.draw(draw_key, len(labels), config)
        targets = objective.targets(draws, images, labels, Teacher(state.ema))

        @eqx.filter_value_and_grad
        def loss(model: DiT) -> Float[Array, ""]:
            key = dropout_key if config.dropout > 0 else None
            return jnp.mean(squared_error(model, targets, key))

        value, gradient = loss(state.model)
        weights = eqx.filter(state.model, eqx.is_array)
        updates, opt_state = optimizer.update(gradient, state.opt_state, weights)
        model = eqx.apply_updates(state.model, updates)
        average = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, state.ema, model)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(model, average, opt_state, state.step + 1), metrics

    return lambda state, images, labels, key: compiled((images, labels, key), state)


@eqx.filter_jit
def held_out_loss(
    state: TrainState, objective: Objective, images: Images, labels: Labels, key: Key[Array, ""]
) -> Float[Array, ""]:
    """Return the objective's loss of the trained weights on data they have not seen.

    The same key gives the same draws, so that values of one run can be compared.
    """
    draws = objective.draw(key, len(labels), state.model.config)
    targets = objective.targets(draws, images, labels, Teacher(state.ema))
    return jnp.mean(squared_error(state.model, targets))
