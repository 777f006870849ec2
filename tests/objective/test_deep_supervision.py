"""Deep supervision: every depth regresses on the target, in one pass."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
from odelt_eqx.objective import (
    DeepSupervision,
    FlowMatching,
    LengthConsistency,
    MeanFlow,
    Networks,
    Shortcut,
    TrainingTime,
)
from odelt_eqx.presets import of_type
from odelt_eqx.training.step import held_out_loss, init_state, squared_error
from tests.conftest import TINY

CONFIG = dataclasses.replace(TINY, length_embedding="none")
IMAGES = jax.random.normal(jax.random.key(3), (8, 8, 8, 1))
LABELS = jnp.arange(8)
START = TrainingTime(step=0, steps=100)


def network(seed=0, config=CONFIG):
    fresh = config.build(key=jax.random.key(seed))
    final = jax.random.normal(jax.random.key(seed + 1), fresh.final.out.weight.shape)
    return eqx.tree_at(lambda m: m.final.out.weight, fresh, final)


def targets_of(objective, networks):
    draws = objective.draw(jax.random.key(0), 8, networks.student.network, START)
    return objective.targets(draws, IMAGES, LABELS, networks)


@pytest.mark.parametrize(
    ("weights", "share", "teacher"),
    [
        ((), 0.0, "student"),
        ((3.0, 1.0), 0.0, "student"),
        ((), 0.3, "student"),
        ((), 0.3, "average"),
    ],
)
@pytest.mark.parametrize("inner", [FlowMatching(), Shortcut(every=4)], ids=str)
def test_the_loss_is_the_weighted_sum_over_depths(inner, weights, share, teacher):
    model, average = network(), network(5)
    networks = dataclasses.replace(Networks.all(average), student=Networks.all(model).student)
    targets = targets_of(DeepSupervision(inner, weights, share, teacher), networks)
    base = targets_of(inner, networks)
    np.testing.assert_array_equal(targets.velocity, base.velocity)
    inputs = (base.t, base.x_t, base.step_index, base.condition)
    shallow, deep = (model(*inputs, depth=depth) for depth in (2, 4))
    taught = average(*inputs) if teacher == "average" else deep
    aim = (1 - share) * base.velocity + share * taught
    square = lambda v: np.asarray(jnp.mean(v**2, axis=(1, 2, 3)))
    errors = square(shallow - aim), square(deep - base.velocity)
    np.testing.assert_allclose(squared_error(model, targets), errors, rtol=1e-4)
    a, b = weights or (1.0, 1.0)
    assert targets.edges.weights == (a / (a + b), b / (a + b))


@pytest.mark.thorough
def test_no_gradient_flows_through_what_teaches():
    """The deepest velocity is a constant where it teaches."""
    model = network()
    targets = targets_of(DeepSupervision(FlowMatching(), share=1.0), Networks.all(model))
    inputs = (targets.t, targets.x_t, targets.step_index, targets.condition)
    fixed = model(*inputs)

    def by_hand(model):
        shallow, deep = model.velocities(*inputs)
        return jnp.mean((shallow - fixed) ** 2) + jnp.mean((deep - targets.velocity) ** 2)

    ours = eqx.filter_grad(lambda m: jnp.sum(jnp.mean(squared_error(m, targets), axis=1)))(model)
    theirs = eqx.filter_grad(by_hand)(model)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.thorough
def test_errors_are_weighted_at_each_depth_by_themselves():
    """Mean flow's power of 1 makes every gradient that of a logarithm, at every depth."""
    objective, optimizer = DeepSupervision(MeanFlow(every=4)), optax.sgd(0.0)
    step = odelt.make_train_step(objective, optimizer, steps=10)
    _, metrics = step(init_state(network(), optimizer), IMAGES, LABELS, jax.random.key(0))
    assert np.isfinite(metrics["loss"])
    assert 0 < metrics["grad_norm"] < np.inf


@pytest.mark.parametrize(
    ("objective", "config", "message"),
    [
        (DeepSupervision(), TINY, "give --model.length-embedding none or edge"),
        (DeepSupervision(weights=(1.0,)), CONFIG, r"a weight for each depth \(2, 4\)"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(objective, config, message):
    shape = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    with pytest.raises(odelt.InputError, match=message):
        objective.draw(jax.random.key(0), 8, shape, START)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, r"share must lie in \[0, 1\]; got 1.5"),
        ({"weights": (1.0, 0.0)}, "weights must be positive"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(odelt.InputError, match=message):
        DeepSupervision(**arguments)


@pytest.mark.slow
def test_a_step_in_parts_is_the_step(tmp_path):
    optimizer, results = optax.sgd(0.1), []
    shallow = dataclasses.replace(CONFIG, depth=2, depth_min=1, depth_group=1)
    objective = DeepSupervision(Shortcut(every=4), (2.0, 1.0), 0.5, "average")
    for parts in (1, 2):
        step = odelt.make_train_step(objective, optimizer, steps=10, parts=parts)
        state = init_state(network(config=shallow), optimizer)
        state, metrics = step(state, IMAGES, LABELS, jax.random.key(1))
        results.append((state.model, metrics["loss"]))
    loss = held_out_loss(state, objective, IMAGES, LABELS, jax.random.key(2), 10)
    assert np.isfinite(loss)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_word_turns_a_preset_to_it_and_back():
    preset = odelt.preset("imagenet-b")
    every = of_type(preset, "deep-supervision")
    assert isinstance(every.objective, DeepSupervision)
    assert every.objective.objective == preset.objective.objective
    assert every.model.length_embedding == "none"
    flow = of_type(every, "rfm").objective
    assert isinstance(flow, DeepSupervision)
    assert isinstance(flow.objective, FlowMatching)
    back = of_type(every, "length-consistency")
    assert isinstance(back.objective, LengthConsistency)
    assert back == preset
