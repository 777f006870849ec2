"""One training step: a pure function from state and batch to state and metrics."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from odelt_eqx.condition import Condition, ConditionLike
from odelt_eqx.errors import InputError, find_by_name
from odelt_eqx.inputs import one_key
from odelt_eqx.network import Network, as_batch, predict_hidden, raise_failures_of_length
from odelt_eqx.objective import Networks, Objective, Targets, Teacher, TrainingTime
from odelt_eqx.parallel import constrain_state, distribute
from odelt_eqx.training.accumulate import Keys, Mean, accumulate
from odelt_eqx.training.average import PowerAverage
from odelt_eqx.training.skips import Skips

Metrics = dict[str, Float[Array, ""]]
X = Float[Array, "batch *shape"]
Data = Shaped[Array | np.ndarray, "batch *shape"]
Decay = Callable[[Int[Array, ""]], float | Float[Array, ""]]
"""Decay of the EMA as a function of the steps taken."""


class TrainState(eqx.Module):
    """Everything that training changes.

    Args:
        model: the network that is trained.
        ema: its moving average: the teacher, and what is sampled from.
        opt_state: state of the optimiser.
        step: steps done, skipped ones included.
        teacher: a network that teaches in place of the average, or None.
        skips: counts of the steps that were skipped.
        averages: other averages, from whose snapshots one of any width can be made.

    Example:
        >>> state = odelt.init_state(model, optax.adamw(1e-3))
        >>> int(state.step), state.teacher
        (0, None)
    """

    model: Network
    ema: Network
    opt_state: optax.OptState
    step: Int[Array, ""]
    teacher: Network | None = None
    skips: Skips = eqx.field(default_factory=Skips.fresh)
    averages: tuple[PowerAverage, ...] = ()


TrainStep = Callable[[TrainState, Data, ConditionLike | None, Any], tuple[TrainState, Metrics]]
"""What `make_train_step` returns: `(state, data, condition, key) -> (state, metrics)`."""


def is_trained(network: Network, frozen: Collection[str] = ()) -> PyTree[bool]:
    """Return for every leaf of a network whether training changes it.

    Args:
        frozen: names of the network's fields whose weights stay as they are.

    Raises:
        InputError: the network has no such field.
    """
    parts = {field.name: field for field in dataclasses.fields(network)}
    for name in frozen:
        find_by_name("part of this network", name, parts)
    trained = lambda path, leaf: eqx.is_inexact_array(leaf) and path[0].name not in frozen
    return jax.tree_util.tree_map_with_path(trained, network)


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    frozen: Collection[str] = (),
    widths: Sequence[float] = (),
) -> TrainState:
    """Return the state before the first step; the EMA is a copy of the model.

    The arrays of the model become part of the state, which training donates.

    Args:
        frozen: names of the model's fields that are not trained, as `make_train_step` gets them.
        widths: of power-function averages that are kept besides the EMA, see `PowerAverage`.

    Raises:
        InputError: the model has no such field, or there is no average of such a width.

    Example:
        >>> state = odelt.init_state(model, optax.adamw(1e-3), frozen=("patch_embedding",))
        >>> int(state.step)
        0
    """
    zero = lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x
    state = TrainState(
        model=model,
        ema=model,
        opt_state=optimizer.init(eqx.filter(model, is_trained(model, frozen))),
        step=jnp.zeros((), jnp.int32),
        averages=tuple(PowerAverage(jax.tree.map(zero, model), width) for width in widths),
    )
    return constrain_state(_without_aliases(state))


def _without_aliases(state: TrainState) -> TrainState:
    """Return `state` with copies of what it holds again: no array can be donated twice.

    The average begins as the model, an optimiser may keep the first weights, and blocks may share
    them.
    """
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        again = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.copy(leaf) if again and eqx.is_array(leaf) else leaf

    return jax.tree.map(own, state)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    ema: float | Decay = 0.999,
    parts: int = 1,
    max_skipped: int = 10,
    frozen: Collection[str] = (),
    checked: bool = True,
) -> TrainStep:
    """Return the compiled training step, `(state, data, condition, key) -> (state, metrics)`.

    The state passed to it is donated: its buffers become the new state's. Where the loss or the
    gradient is not finite, the step only counts: weights, EMA and optimiser stay as they were.

    Args:
        steps: steps of the whole run, which schedules refer to.
        ema: decay of the moving average, or a function that returns it for the steps taken.
        parts: number of parts that a batch is trained in, one after another, at least 1.
        max_skipped: after so many skipped steps in a row, every step is skipped.
        frozen: names of the model's fields that are not trained; they get no gradient.
        checked: look at every batch before it is trained on, for which its condition must come
            back from the device; a loop that knows its data need not wait for it.

    Raises:
        InputError: `parts` is none; or when it is called, the objective needs a teacher and the
            state has none, or data or conditions do not fit the network.

    Example:
        >>> optimizer = optax.adamw(1e-3)
        >>> step = odelt.make_train_step(odelt.objective.FlowMatching(), optimizer, steps=100)
        >>> network = odelt.DiT(model.config, key=jax.random.key(0))
        >>> state = odelt.init_state(network, optimizer)
        >>> state, metrics = step(state, noise, labels, jax.random.key(1))
        >>> int(state.step), sorted(metrics)
        (1, ['grad_norm', 'loss', 'skipped'])
    """
    if parts < 1:
        raise InputError(f"parts must be at least 1; got {parts}")

    @eqx.filter_jit(donate="all-except-first")
    def compiled(
        batch: tuple[X, Condition | None, Key[Array, ""]], state: TrainState
    ) -> tuple[TrainState, Metrics]:
        data, condition, key = batch
        draw_key, dropout_key = jax.random.split(key)
        state = _update_teacher(state, objective, steps)
        targets = _make_targets(state, objective, data, condition, draw_key, steps)
        trained = is_trained(state.model, frozen)
        weights, rest = eqx.partition(state.model, trained)
        differentiate = partial(_differentiate, rest=rest)
        if parts == 1:
            (_, losses), gradient = differentiate(weights, targets, dropout_key, jnp.mean)
        else:
            (_, losses), gradient = accumulate(differentiate, weights, targets, dropout_key, parts)
        norm = optax.tree.norm(gradient)  # not finite if any of the gradient is not
        finite = jnp.isfinite(losses["loss"]) & jnp.isfinite(norm)
        taken, skips = state.skips.judge(finite, max_skipped)
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic needs it
            updates, opt_state = optimizer.update(gradient, state.opt_state, weights)
        weights = eqx.apply_updates(weights, updates)
        before = state.step - state.skips.total
        decay = ema(before) if callable(ema) else ema
        average = _average(decay, eqx.filter(state.ema, trained), weights)
        model, average = eqx.combine(weights, rest), eqx.combine(average, rest)
        averages = tuple(each.update(model, trained, before + 1) for each in state.averages)
        old = (state.model, state.ema, state.opt_state, state.averages)
        model, average, opt_state, averages = _select(
            taken, (model, average, opt_state, averages), old
        )
        metrics = losses | {"grad_norm": norm, "skipped": skips.total.astype(jnp.float32)}
        done = state.step + 1
        new = TrainState(model, average, opt_state, done, state.teacher, skips, averages)
        return constrain_state(new), metrics

    def step(
        state: TrainState, data: Data, condition: ConditionLike | None, key: Key[Array, "*#one"]
    ) -> tuple[TrainState, Metrics]:
        key = one_key(key)
        batch: tuple[Any, Any] = data, condition
        if checked:
            if getattr(data, "dtype", None) == jnp.uint8:
                raise InputError("data are bytes: scale them first, to [-1, 1] by data / 127.5 - 1")
            batch = as_batch(state.model, data, condition)
            if not len(batch[0]):
                raise InputError(
                    f"a batch must have an example; got data of shape {batch[0].shape}"
                )
        return compiled((*batch, key), state)

    return step


@eqx.filter_jit
def held_out_loss(
    state: TrainState,
    objective: Objective,
    data: X,
    condition: Condition | None,
    key: Key[Array, ""],
    steps: int,
) -> Float[Array, ""]:
    """Return the objective's loss of the trained weights on data they have not seen.

    The same key gives the same draws, so that values of one run can be compared; `steps` are those
    of the whole run.
    """
    state = _update_teacher(state, objective, steps)
    targets = _make_targets(state, objective, data, condition, key, steps)
    return jnp.mean(_over_depths(squared_error(distribute(state.model), targets), targets))


def squared_error(
    model: Network, targets: Targets, key: Keys = None
) -> Float[Array, " batch"] | Float[Array, "depths batch"]:
    """Return the mean squared error of the velocity of each example, at each of several depths.

    There is no dropout without a key.
    """
    return _errors(model, targets, key)[0]


def _errors(
    model: Network, targets: Targets, key: Keys
) -> tuple[Float[Array, "*depths batch"], Float[Array, " batch"] | None]:
    """Return what `squared_error` does, and the distance of hidden states that are aligned."""
    inputs = (targets.t, targets.x_t, targets.step_index, targets.condition)
    mean = lambda error: jnp.mean(error**2, axis=tuple(range(-len(model.shape), 0)))
    options = {"key": key, "guidance": targets.guidance}
    if not isinstance(targets.depth, tuple):
        velocity = model(*inputs, depth=targets.depth, **options)
        return mean(velocity - targets.velocity), None
    alignment, distance = targets.alignment, None
    at = None if alignment is None else alignment.depth
    velocities, stats = model.evaluate(*inputs, targets.depth, hidden=at, **options)
    velocities = raise_failures_of_length(velocities, stats, model.length)
    if alignment is not None:
        distance = alignment.distance(predict_hidden(model, stats))
    shallow, edges = targets.velocity, targets.edges
    if edges is not None and edges.share:
        own = jax.lax.stop_gradient(velocities[-1])
        teacher = own if edges.teacher is None else edges.teacher
        shallow = shallow + edges.share * (teacher - shallow)
    last = velocities[-1:] - targets.velocity
    return mean(jnp.concatenate([velocities[:-1] - shallow, last])), distance


def _over_depths(errors: Float[Array, "*depths batch"], targets: Targets) -> Float[Array, " batch"]:
    """Return the errors of examples, weighted over depths if there are several."""
    if targets.edges is None:
        return errors
    return jnp.asarray(targets.edges.weights) @ errors


def weight_errors(
    errors: Float[Array, "*depths batch"], power: Float[Array, " batch"] | None
) -> Float[Array, "*depths batch"]:
    """Return `e / (e + 0.001) ** power`, the denominator a constant (arXiv 2505.13447, eq. 22).

    The gradient is that of the squared error times a weight that is small where the error is large:
    a power of 0 changes nothing, 1 is close to the gradient of the logarithm.
    """
    return errors if power is None else errors / jax.lax.stop_gradient(errors + 1e-3) ** power


@eqx.filter_value_and_grad(has_aux=True)
def _differentiate(
    weights: Network, targets: Targets, key: Keys, mean: Mean, rest: Network
) -> tuple[Float[Array, ""], Metrics]:
    """Return what is minimised and the losses by name, each `mean` of one per example.

    The network is that of the `weights`, which are trained, and the `rest`.
    """
    errors, distance = _errors(distribute(eqx.combine(weights, rest)), targets, key)
    minimised = _over_depths(weight_errors(errors, targets.power), targets)
    losses = {"loss": mean(_over_depths(errors, targets))}
    if targets.alignment is not None and distance is not None:
        minimised = minimised + targets.alignment.weight * distance
        losses["alignment"] = mean(distance)
    return mean(minimised), losses


def _make_targets(
    state: TrainState,
    objective: Objective,
    data: X,
    condition: Condition | None,
    key: Key[Array, ""],
    steps: int,
) -> Targets:
    """Return what the objective makes of a batch at this step of the run."""
    chosen = state.teacher
    if chosen is None:
        chosen = state.model if objective.taught_by == "student" else state.ema
    roles = (state.model, state.ema, chosen)
    networks = Networks(*(Teacher(distribute(network)) for network in roles))
    when = TrainingTime(state.step, steps)
    draws = objective.draw(key, len(data), state.model, when)
    return objective.targets(draws, data, condition, networks)


def _update_teacher(state: TrainState, objective: Objective, steps: int) -> TrainState:
    """Return the state with a copy of the average as teacher if a stage starts here."""
    if objective.taught_by not in ("frozen", "stages"):
        return state
    if state.teacher is None:
        raise InputError(f"{objective} distils a trained network: give the state a teacher")
    if objective.taught_by == "frozen":
        return state
    starts = TrainingTime(state.step, steps).starts_stage(state.model.flow_index)
    return dataclasses.replace(state, teacher=_select(starts, state.ema, state.teacher))


def _average(decay: float | Array, average: Network, model: Network) -> Network:
    """Return the moving average of weights after a step."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, model)


def _select(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return the arrays of `new` if the condition holds, or else those of `old`."""
    choose = lambda n, o: jnp.where(condition, n, o) if eqx.is_array(n) else n
    return jax.tree.map(choose, new, old)
