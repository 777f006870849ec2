"""The step: optimiser, schedule, average, and a loss that falls."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.objective import (
    DeepSupervision,
    FlowMatching,
    LengthConsistency,
    Networks,
    Shortcut,
    TrainingTime,
)
from odelt_eqx.training.average import exponent_of
from odelt_eqx.training.optimizer import ema_decay, learning_rate, make_optimizer
from odelt_eqx.training.step import held_out_loss, init_state, make_train_step, squared_error
from tests.conftest import NETWORK, TINY

IMAGES = jnp.tile(jnp.linspace(-1, 1, 8)[:, None, None], (16, 1, 8, 1))
LABELS = jnp.arange(16) % 10


def test_the_rate_rises_stays_and_falls():
    rate = learning_rate(OptimizerConfig(learning_rate=1e-3, warmup=2), steps=100)
    cosine = lambda k: 0.5e-3 * (1 + np.cos(np.pi * k / 10))
    expected = {0: 0, 1: 5e-4, 2: 1e-3, 50: 1e-3, 90: 1e-3, 95: cosine(5), 99: cosine(9), 100: 0}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-9)


def test_without_warm_up_the_rate_is_there_at_once():
    rate = learning_rate(OptimizerConfig(learning_rate=1e-3, warmup=0), steps=100)
    assert [float(rate(step)) for step in (0, 50)] == pytest.approx([1e-3, 1e-3])


def test_the_average_of_a_short_run_forgets_its_first_weights():
    config = OptimizerConfig(ema=0.995)
    share = lambda decay: np.prod([float(decay(step)) for step in range(300)])
    assert share(ema_decay(config, 300)) < 1e-9
    assert [float(ema_decay(config, 300)(step)) for step in (0, 90, 5000)] == pytest.approx(
        [0.1, 0.91, 0.995]
    )
    old = dataclasses.replace(config, ema_warmup=False)
    # Weights to start from are an average, and a long run forgets its first ones anyway.
    for kept in ((old, 300), (config, 300, True), (config, 8000)):
        assert share(ema_decay(*kept)) == pytest.approx(0.995**300, rel=1e-3)


@pytest.mark.thorough
def test_averages_follow_the_steps_that_were_taken():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup=0), 100)
    step = make_train_step(FlowMatching(), optimizer, ema=lambda taken: taken / 4, steps=100)
    state = init_state(TINY.build(key=jax.random.key(0)), optimizer, widths=(0.1,))
    taken = []
    for index, data in enumerate((IMAGES, IMAGES * jnp.nan, IMAGES)):
        before = jax.tree.map(jnp.copy, state.ema)
        state, _ = step(state, data, LABELS, jax.random.key(index))
        taken.append(jax.tree.map(jnp.copy, state.model))
    mean = lambda old, new: 0.25 * old + 0.75 * new  # one step had been taken
    leaves = map(jax.tree.leaves, (state.ema, jax.tree.map(mean, before, state.model)))
    for found, expected in zip(*leaves, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    first = 0.5 ** (exponent_of(0.1) + 1)  # of two steps
    power = lambda old, new: first * old + (1 - first) * new
    average = jax.tree.map(power, taken[0], taken[2])
    for pair in zip(*map(jax.tree.leaves, (state.averages[0].network, average)), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)


def test_a_step_is_adamw_on_the_mean_squared_error_and_moves_the_average():
    objective = LengthConsistency(Shortcut(), every=8)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup=0), 100)
    key = jax.random.key(1)
    state = init_state(TINY.build(key=jax.random.key(0)), optimizer)
    before = jax.tree.map(jnp.copy, state.model)

    @jax.jit
    def expected(model):
        draws = objective.draw(jax.random.split(key)[0], 16, NETWORK, TrainingTime(0, 100))
        targets = objective.targets(draws, IMAGES, LABELS, Networks.all(model))
        loss, gradient = jax.value_and_grad(lambda m: jnp.mean(squared_error(m, targets)))(model)
        return loss, optimizer.update(gradient, optimizer.init(model), model)[0]

    loss, updates = expected(before)

    after, metrics = make_train_step(objective, optimizer, ema=0.9, steps=100)(
        state, IMAGES, LABELS, key
    )
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert int(after.step) == 1
    for old, update, new, mean in zip(
        *map(jax.tree.leaves, (before, updates, after.model, after.ema)), strict=True
    ):
        np.testing.assert_allclose(new, old + update, atol=2e-5)
        np.testing.assert_allclose(mean, 0.9 * old + 0.1 * new, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(FlowMatching(), marks=pytest.mark.slow),
        pytest.param(LengthConsistency(Shortcut()), marks=pytest.mark.slow),
        DeepSupervision(),
    ],
    ids=str,
)
def test_training_learns_and_the_held_out_loss_sees_it(objective):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, warmup=5), 200)
    told = "none" if isinstance(objective, DeepSupervision) else "depth"
    config = dataclasses.replace(TINY, dropout=0.1, length_embedding=told)
    state = init_state(config.build(key=jax.random.key(0)), optimizer)
    train_step = make_train_step(objective, optimizer, ema=0.95, steps=200)
    held_out = lambda: float(
        held_out_loss(state, objective, IMAGES, LABELS, jax.random.key(9), 200)
    )
    before = held_out()
    for step in range(60):
        key = jax.random.fold_in(jax.random.key(1), step)
        state, _ = train_step(state, IMAGES, LABELS, key)
    assert held_out() < 0.7 * before


def test_a_key_of_a_step_is_one_of_jax(any_types):
    step = make_train_step(FlowMatching(), optax.sgd(0.1), steps=1)
    with pytest.raises(odelt.InputError, match="key must be one of JAX's typed keys"):
        step(NETWORK, IMAGES, LABELS, 0)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (IMAGES[:, :, :1], LABELS, r"states must have shape \(batch, 8, 8, 1\); got \(16, 8, 1, 1"),
        (IMAGES[0], LABELS[:8], r"states must have shape \(batch, 8, 8, 1\); got \(8, 8, 1\)"),
        (IMAGES[..., 0], LABELS, r"states must have shape \(batch, 8, 8, 1\); got \(16, 8, 8\)"),
        (np.zeros((16, 8, 8, 1), np.uint8), LABELS, "data are bytes: scale them first"),
        (IMAGES[:0], LABELS[:0], r"a batch must have an example; got data of shape \(0, 8, 8, 1\)"),
        (IMAGES, LABELS + 2, "labels must lie between 0 and 9, or be 10 for none; got 11"),
        (IMAGES, LABELS - 1, "labels must lie between 0 and 9, or be 10 for none; got -1"),
        (IMAGES, LABELS + 0.5, "labels must be whole numbers"),
        (IMAGES, ["cat"] * 16, "labels must be whole numbers"),
        (IMAGES, np.eye(16)[:, :10], r"labels must have shape \(16,\); got \(16, 10\)"),
        (IMAGES, None, r"labels must have shape \(16,\); got None"),
    ],
)
def test_what_does_not_fit_the_network_is_not_trained(any_types, data, labels, message):
    step = make_train_step(FlowMatching(), optax.sgd(0.1), steps=1)
    state = odelt.TrainState(NETWORK, NETWORK, (), jnp.zeros((), int))
    with pytest.raises(odelt.InputError, match=message):
        step(state, data, labels, jax.random.key(0))


def test_a_batch_has_at_least_one_part():
    with pytest.raises(odelt.InputError, match="parts must be at least 1; got 0"):
        make_train_step(FlowMatching(), optax.sgd(0.1), steps=1, parts=0)


def test_no_array_of_a_state_is_there_twice():
    """It is donated, also where blocks share weights and the optimiser keeps the first ones."""
    shared = jnp.zeros(2)
    network = eqx.tree_at(lambda n: n.groups, NETWORK, (shared, shared))
    keeps = optax.GradientTransformation(lambda weights: weights, lambda *_: _)
    state = init_state(eqx.filter(network, lambda leaf: leaf is shared), keeps)
    arrays = jax.tree.leaves(state)
    assert len(arrays) == 6 + 3  # besides the counts of steps
    assert len({id(array) for array in arrays}) == len(arrays)


def test_the_same_key_gives_the_same_step():
    optimizer = make_optimizer(OptimizerConfig(), 100)
    train_step = make_train_step(Shortcut(), optimizer, ema=0.9, steps=100)

    def loss(key):
        state = init_state(TINY.build(key=jax.random.key(0)), optimizer)
        return float(train_step(state, IMAGES, LABELS, jax.random.key(key))[1]["loss"])

    assert loss(1) == loss(1) != loss(2)
