"""Self-alignment: hidden states predict those of the average, deeper and with less noise."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn.embeddings import position_table
from odelt_eqx.objective import (
    TRAIN_TYPES,
    DeepSupervision,
    FlowMatching,
    LiveReflow,
    MeanFlow,
    Networks,
    Progressive,
    SelfAlignment,
    Shortcut,
    TrainingTime,
)
from odelt_eqx.objective.path import approach, interpolate
from odelt_eqx.presets import of_type
from odelt_eqx.training.step import held_out_loss, init_state, squared_error
from tests.conftest import TINY

CONFIG = dataclasses.replace(TINY, length_embedding="none", projector=True)
FLOW = SelfAlignment(FlowMatching())
IMAGES = jax.random.normal(jax.random.key(3), (8, 8, 8, 1))
LABELS = jnp.arange(8)
START = TrainingTime(step=0, steps=100)
KEY = jax.random.key(4)


def network(seed=0, config=CONFIG):
    fresh = config.build(key=jax.random.key(seed))
    final = 0.1 * jax.random.normal(jax.random.key(seed + 1), fresh.final.out.weight.shape)
    return eqx.tree_at(lambda m: m.final.out.weight, fresh, final)


def two_networks():
    model, average = network(), network(5)
    networks = dataclasses.replace(Networks.all(average), student=Networks.all(model).student)
    return model, average, networks


def targets_of(objective, networks, draws=None):
    if draws is None:
        draws = objective.draw(jax.random.key(0), 8, networks.student.network, START)
    return objective.targets(draws, IMAGES, LABELS, networks)


def state_at(model, depth, t, x, index, labels):
    """The hidden state by hand: one Euler step of the published wiring for each group."""
    values = x.reshape(len(x), 2, 4, 2, 4, 1).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 4, 16)
    table = position_table((2, 2), model.config.hidden_size)
    h = jax.vmap(jax.vmap(model.patch_embedding))(values) + table
    spread = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), len(x))
    c = model.condition_embedding(spread(t), spread(index), labels, None)
    for j in range(0, depth, 2):
        before = jax.vmap(model.blocks[j])(h, c)
        h = before + jax.vmap(model.blocks[j + 1])(before, c)
    return h


def distance(a, b):
    """The smooth-l1 distance with its bend at 0.05."""
    off = np.abs(np.asarray(a) - np.asarray(b))
    return np.where(off < 0.05, 10 * off**2, off - 0.025).mean(axis=(1, 2))


@pytest.mark.parametrize(
    "inner", [FlowMatching(), DeepSupervision(Shortcut(every=4), (1.0, 3.0), 0.3)], ids=str
)
def test_the_distance_to_the_later_state_is_added_to_the_loss(inner):
    model, average, networks = two_networks()
    objective = SelfAlignment(inner, weight=0.5, max_shift=0.4)
    draws = objective.draw(jax.random.key(0), 8, model, START)
    targets = targets_of(objective, networks, draws)
    base = inner.targets(draws.objective, IMAGES, LABELS, networks)
    for name in ("t", "x_t", "velocity", "condition", "step_index"):
        np.testing.assert_array_equal(getattr(targets, name), getattr(base, name))

    column = lambda values: np.reshape(values, (-1, 1, 1, 1))
    later = np.minimum(base.t + 0.4 * draws.shift, 1)
    assert (later > base.t).all()
    noise = (base.x_t - column(base.t) * IMAGES) / column(1 - base.t)
    x_later = column(1 - later) * noise + column(later) * IMAGES
    taught = state_at(average, 4, later, x_later, 7, base.condition)
    taught = (taught - taught.mean(-1, keepdims=True)) / taught.std(-1, keepdims=True)
    student = state_at(model, 2, base.t, base.x_t, base.step_index, base.condition)
    predicted = model.projector(student)
    np.testing.assert_allclose(
        targets.alignment.distance(predicted), distance(predicted, taught), rtol=1e-3
    )
    errors = np.atleast_2d(squared_error(model, base))
    np.testing.assert_allclose(squared_error(model, targets), errors, rtol=1e-5)
    assert targets.edges.weights == ((1.0,) if base.edges is None else (0.25, 0.75))


def change(objective, model, average):
    """What a gradient step of size one takes off the weights, and its metrics."""
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    optimizer = optax.sgd(1.0)
    state = dataclasses.replace(init_state(copy(model), optimizer), ema=copy(average))
    step = odelt.make_train_step(objective, optimizer, steps=100)
    new, metrics = step(state, IMAGES, LABELS, KEY)
    return jax.tree.map(jnp.subtract, model, new.model), metrics


@pytest.mark.thorough
def test_both_losses_are_logged_and_their_weighted_sum_is_minimised():
    model, average, networks = two_networks()
    objective = SelfAlignment(FlowMatching(), weight=0.5)
    draws = objective.draw(jax.random.split(KEY)[0], 8, model, START)
    targets = targets_of(objective, networks, draws)
    inputs = (targets.t, targets.x_t, targets.step_index, targets.condition)

    def by_hand(model):
        loss = jnp.mean((model(*inputs) - targets.velocity) ** 2)
        predicted = model.projector(state_at(model, 2, *inputs))
        off = jnp.mean(targets.alignment.distance(predicted))
        return loss + 0.5 * off, (loss, off)

    (_, (loss, off)), gradient = eqx.filter_value_and_grad(by_hand, has_aux=True)(model)
    found, metrics = change(objective, model, average)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["alignment"], off, rtol=1e-3)
    for a, b in zip(*map(jax.tree.leaves, (found, gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5)
    state = init_state(network(), optax.sgd(1.0))
    held_out = (held_out_loss(state, o, IMAGES, LABELS, KEY, 100) for o in (objective, FLOW))
    assert len({float(loss) for loss in held_out}) == 1  # of velocities alone


@pytest.mark.thorough
def test_a_bfloat16_network_is_aligned_to_float32_states():
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    *_, networks = two_networks()
    small, average = (network(seed, half) for seed in (0, 5))
    others = dataclasses.replace(Networks.all(average), student=Networks.all(small).student)
    targets, again = (targets_of(FLOW, each) for each in (networks, others))
    assert again.alignment.hidden.dtype == jnp.float32
    np.testing.assert_allclose(again.alignment.hidden, targets.alignment.hidden, atol=0.1)
    _, metrics = change(FLOW, small, average)
    np.testing.assert_allclose(
        metrics["alignment"], change(FLOW, network(), network(5))[1]["alignment"], rtol=0.03
    )


@pytest.mark.thorough
def test_its_gradient_reaches_the_head_and_the_blocks_up_to_the_shallow_edge():
    model, average, _ = two_networks()
    twice, once = (
        change(dataclasses.replace(FLOW, weight=weight), model, average)[0] for weight in (2.0, 1.0)
    )
    found = jax.tree.map(jnp.subtract, twice, once)
    norm = lambda tree: float(optax.tree.norm(tree))
    assert norm(found.projector) > 1e-3
    assert norm(found.groups[0]) > 1e-4
    assert norm(found.patch_embedding) > 1e-4
    assert norm((found.groups[1], found.final)) < 1e-6


@pytest.mark.parametrize("inner", [FlowMatching(), DeepSupervision(Shortcut(every=4))], ids=str)
def test_no_gradient_reaches_what_teaches(inner):
    model = network()
    objective = SelfAlignment(inner)
    draws = objective.draw(jax.random.key(0), 8, model, START)
    taught = lambda m: jnp.sum(targets_of(objective, Networks.all(m), draws).alignment.hidden ** 2)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(taught)(model)))


PATHS = {name: t for name, t in TRAIN_TYPES.items() if isinstance(t, FlowMatching)}


@pytest.mark.parametrize("name", PATHS)
def test_a_later_state_is_on_the_same_path(name):
    """To the end of it, where nothing but the path's own share of the noise is left."""
    flow, noise = PATHS[name], jax.random.normal(jax.random.key(1), IMAGES.shape)
    t = jnp.array([0.0, 0.1, 0.5, 0.9, 1 - 1e-6, 0.2, 0.3, 0.4])
    path = lambda t: interpolate(t, noise, IMAGES, flow.path, flow.sigma_min)
    for later in (t, jnp.minimum(t + 0.2, 1), jnp.ones(8)):
        found = approach(t, later, path(t), IMAGES, flow.path, flow.sigma_min)
        np.testing.assert_allclose(found, path(later), atol=2e-5 if flow.sigma_min else 2e-6)


@pytest.mark.parametrize(
    "objective",
    [
        SelfAlignment(PATHS["icfm"]),
        SelfAlignment(MeanFlow(), depth=1, teacher_depth=2),
        *(
            pytest.param(SelfAlignment(inner), marks=pytest.mark.slow)
            for inner in (
                PATHS["sifm"],
                Shortcut(every=4, guidance=1.5),
                DeepSupervision(MeanFlow(tangent="network", max_guidance=3.0)),
                DeepSupervision(Shortcut(), share=0.5, teacher="average"),
            )
        ),
    ],
    ids=str,
)
def test_it_trains_around_every_objective_that_has_a_path(objective):
    inner = objective.objective
    most = getattr(getattr(inner, "objective", inner), "max_guidance", None)
    config = dataclasses.replace(CONFIG, depth=2, depth_min=1, depth_group=1, max_guidance=most)
    _, metrics = one_step(objective, config)
    assert metrics["alignment"] > 0
    assert np.isfinite(metrics["loss"])


def one_step(objective, config, parts=1):
    optimizer = optax.sgd(0.1)
    step = odelt.make_train_step(objective, optimizer, steps=10, parts=parts)
    state = init_state(network(config=config), optimizer)
    return step(state, IMAGES, LABELS, jax.random.key(1))


@pytest.mark.thorough
def test_in_parts_as_at_once_it_makes_the_same_step():
    objective = SelfAlignment(DeepSupervision(Shortcut(), share=0.5, teacher="average"))
    config = dataclasses.replace(CONFIG, depth=2, depth_min=1, depth_group=1)
    (once, metrics), (twice, same) = (one_step(objective, config, parts) for parts in (1, 2))
    pairs = zip(*map(jax.tree.leaves, ((once.model, metrics), (twice.model, same))), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_shifts_are_uniform_and_stop_at_the_data():
    objective = SelfAlignment(FlowMatching(times="grid"), max_shift=1.0)
    draws = objective.draw(jax.random.key(0), 4096, network(), START)
    shift = draws.shift
    assert shift.tolist() != draws.objective.time.tolist()
    assert abs(float(shift.mean()) - 0.5) < 0.02
    assert shift.min() >= 0
    still = SelfAlignment(FlowMatching(), max_shift=0.0)
    _, _, networks = two_networks()
    targets = targets_of(still, networks)
    inputs = (targets.t, targets.x_t, targets.step_index, targets.condition)
    same = state_at(networks.average.network, 4, *inputs)
    same = (same - same.mean(-1, keepdims=True)) / same.std(-1, keepdims=True)
    np.testing.assert_allclose(targets.alignment.hidden, same, atol=1e-4)


class Blind(odelt.Network):
    """A network of a user with a projector, which does not pass on what it is asked for."""

    projector: eqx.nn.Identity
    shape, condition_type, depths, flow_index = (8, 8, 1), None, (1, 2), 7
    length, anytime = odelt.FixedSteps(), True

    def velocity(self, inputs):
        groups = [odelt.ODEBlock((lambda h, c, key=None: h,))] * 2
        return odelt.integrate_length(
            groups, inputs.x, inputs.t[:, None], inputs.depth, inputs.length
        )


class Seeing(odelt.Network):
    """A network of a user that does."""

    scale: jax.Array
    projector: eqx.nn.Identity
    shape, condition_type, depths, flow_index = (8, 8, 1), None, (1, 2), 7
    length, anytime = odelt.FixedSteps(), True

    def velocity(self, inputs):
        group = odelt.ODEBlock((lambda h, c, key=None: self.scale * h,))
        return odelt.integrate_length(
            [group] * 2,
            inputs.x,
            inputs.t[:, None],
            inputs.depth,
            inputs.length,
            hidden=inputs.hidden,
        )


def test_a_network_of_a_user_is_aligned_if_it_keeps_its_state():
    optimizer = optax.sgd(0.1)
    step = odelt.make_train_step(FLOW, optimizer, steps=10)
    own = Seeing(jnp.ones(()), eqx.nn.Identity())
    _, metrics = step(init_state(own, optimizer), IMAGES, None, jax.random.key(0))
    assert metrics["alignment"] > 0
    blind = Blind(eqx.nn.Identity())
    with pytest.raises(odelt.InputError, match=r"keeps no hidden state: .*pass inputs\.hidden"):
        step(init_state(blind, optimizer), IMAGES, None, jax.random.key(0))


def headless():
    return dataclasses.replace(CONFIG, projector=False)


@pytest.mark.parametrize(
    ("objective", "config", "message"),
    [
        (FLOW, headless(), r"a network with a projector: give --model\.projector"),
        (
            FLOW,
            dataclasses.replace(CONFIG, length_embedding="depth"),
            r"give --model\.length-embedding none or edge",
        ),
        (SelfAlignment(DeepSupervision(weights=(1.0,))), CONFIG, "a weight for each depth"),
        (SelfAlignment(depth=4), CONFIG, r"both among 2, 4 \(in blocks\); got 4 and 4"),
        (SelfAlignment(teacher_depth=3), CONFIG, r"both among 2, 4 \(in blocks\); got 2 and 3"),
        (FLOW, dataclasses.replace(CONFIG, depth=2), r"both among 2 \(in blocks\); got 2 and 2"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(objective, config, message):
    shape = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    with pytest.raises(odelt.InputError, match=message):
        objective.draw(jax.random.key(0), 8, shape, START)
    run = odelt.preset("digits")
    with pytest.raises(odelt.InputError, match=message):
        dataclasses.replace(run, model=config, objective=objective)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 0.0}, "weight must be positive; got 0"),
        ({"max_shift": 1.5}, r"max_shift must lie in \[0, 1\]; got 1.5"),
        ({"objective": LiveReflow()}, "states on a path to the data.*; got LiveReflow"),
        ({"objective": DeepSupervision(Progressive())}, "; got Progressive"),
    ],
)
def test_what_it_cannot_do_is_refused(arguments, message):
    with pytest.raises(odelt.InputError, match=message):
        SelfAlignment(**arguments)


def test_the_default_teacher_is_two_thirds_of_the_way_up():
    edges = lambda count: FLOW.edges(tuple(range(1, count + 1)))
    assert [edges(n) for n in (2, 3, 6, 12)] == [(1, 2), (1, 2), (1, 4), (1, 8)]


def test_words_in_any_order_turn_a_preset_to_it():
    config = of_type(odelt.preset("digits"), "self-alignment")
    assert isinstance(config.objective, SelfAlignment)
    assert isinstance(config.objective.objective, DeepSupervision)
    assert config.model.projector
    assert config.sample.depth_guidance == 0.5
    flow = of_type(config, "rfm")
    assert flow == of_type(of_type(odelt.preset("digits"), "rfm"), "self-alignment")
    assert isinstance(flow.objective.objective.objective, FlowMatching)
    every = of_type(of_type(odelt.preset("sit-b"), "self-alignment"), "deep-supervision")
    assert isinstance(every.objective.objective, DeepSupervision)
    alone = of_type(odelt.preset("sit-b"), "self-alignment")
    assert not alone.objective.trains_depths
    assert dataclasses.replace(alone, objective=FlowMatching()).sample.depth_guidance == 0
    with pytest.raises(odelt.InputError, match="name deep-supervision before it"):
        of_type(odelt.preset("imagenet-b"), "self-alignment")


def test_the_head_changes_no_other_weight_and_no_sample():
    model, plain = CONFIG.build(key=jax.random.key(0)), headless().build(key=jax.random.key(0))
    without = eqx.tree_at(lambda m: m.projector, model, None)
    for a, b in zip(*map(jax.tree.leaves, (without, plain)), strict=True):
        np.testing.assert_array_equal(a, b)
    ours, theirs = (odelt.sample(m, IMAGES, LABELS, depth=2) for m in (model, plain))
    np.testing.assert_array_equal(ours, theirs)
    short = odelt.truncate(model, 2)
    assert short.projector is None
    assert not short.config.projector
    np.testing.assert_array_equal(odelt.sample(short, IMAGES, LABELS, depth=2), ours)
