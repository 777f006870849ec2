"""Objectives with schedules and several networks: which network is asked, where, about what."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import TrainConfig
from odelt_eqx.interop import PublishedLiveReflow
from odelt_eqx.objective import (
    Consistency,
    ConsistencyDistillation,
    FlowDraws,
    FlowMatching,
    LengthConsistency,
    LiveReflow,
    MeanFlow,
    Networks,
    Progressive,
    Shortcut,
    ShortcutDraws,
    StageDraws,
    Teacher,
    TrainingTime,
)
from tests.conftest import NETWORK, TINY

N = 4
IMAGES = jax.random.normal(jax.random.key(3), (N, 8, 8, 1))
NOISE = jax.random.normal(jax.random.key(4), IMAGES.shape)
LABELS = jnp.array([1, 2, 3, 4])
DROP = jnp.array([False, True, False, False])
KEPT = jnp.where(DROP, TINY.num_classes, LABELS)
FLOW = FlowDraws(DROP, jnp.array([0.0, 0.3, 0.6, 0.99]), NOISE)
FLOOR = 1 - 1e-5


@pytest.fixture(scope="module")
def networks(model) -> Networks:
    """Three networks that answer differently."""
    scaled = lambda s: eqx.tree_at(lambda m: m.final.out.weight, model, replace_fn=lambda w: s * w)
    return Networks(*(Teacher(scaled(s)) for s in (0.5, 1.0, 2.0)))


@eqx.filter_jit
def ask(teacher, t, x, index, labels):
    return teacher(jnp.broadcast_to(t, (N,)), x, jnp.full(N, index), labels)


def shape_of(**changes):
    """The shape of a tiny network with some fields changed."""
    config = dataclasses.replace(TINY, **changes)
    return eqx.filter_eval_shape(config.build, key=jax.random.key(0))


def line(t):
    t = np.asarray(t)[:, None, None, None]
    return (1 - FLOOR * t) * NOISE + t * IMAGES


def assert_near(ours, expected):
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("index", "guidance"), [(6, 1.0), (6, 3.0), (2, 3.0)])
def test_progressive_steps_follow_two_half_steps_of_the_teacher(networks, index, guidance):
    """Guidance is distilled in the first stage alone: later teachers have it."""
    objective = Progressive(guidance=guidance)
    draws = StageDraws(jnp.asarray(index), FLOW)
    targets = eqx.filter_jit(objective.targets)(draws, IMAGES, LABELS, networks)
    weight = guidance if index == TINY.flow_index - 1 else 1.0

    def velocity(t, x):
        labelled, null = (
            ask(networks.teacher, t, x, index + 1, labels)
            for labels in (KEPT, jnp.full(N, TINY.num_classes))
        )
        return null + weight * (labelled - null)

    t, half = jnp.floor(FLOW.time * 2**index) / 2**index, 0.5 / 2**index
    first = velocity(t, line(t))
    second = velocity(t + half, jnp.clip(line(t) + half * first, -4, 4))
    np.testing.assert_allclose(targets.t, t)
    np.testing.assert_allclose(targets.x_t, line(t), atol=1e-5)
    np.testing.assert_array_equal(targets.condition, KEPT)
    assert (targets.step_index == index).all()
    assert_near(targets.velocity, (first + second) / 2)


def with_condition(model, learned):
    """The network of `model` as one that has learned other conditions."""
    structure = jax.tree.structure(shape_of(learned=learned))
    return jax.tree.unflatten(structure, jax.tree.leaves(model))


@pytest.mark.parametrize("index", [6, 2])
def test_progressive_steps_of_guidance_0_are_those_without_conditions(model, index):
    networks = Networks.all(with_condition(model, "null"))
    draws = StageDraws(jnp.asarray(index), FLOW)
    make = lambda guidance, labels: eqx.filter_jit(Progressive(guidance=guidance).targets)(
        draws, IMAGES, labels, networks
    )
    without = make(0.0, LABELS)
    assert (without.condition == TINY.num_classes).all()
    null = jnp.full(N, TINY.num_classes)
    np.testing.assert_allclose(without.velocity, make(1.0, null).velocity, atol=1e-6)


@pytest.mark.parametrize(("learned", "guidance"), [("null", 1.5), ("condition", 0.0)])
def test_progressive_guidance_that_a_teacher_has_not_learned_is_named(model, learned, guidance):
    networks, draws = Networks.all(with_condition(model, learned)), StageDraws(jnp.asarray(6), FLOW)
    targets = eqx.filter_jit(Progressive(guidance=guidance).targets)
    with pytest.raises(odelt.InputError, match=f"guidance.*; got {guidance}"):
        targets(draws, IMAGES, LABELS, networks)


def test_consistency_leads_where_the_next_point_of_the_path_leads(networks):
    draws = StageDraws(jnp.asarray(2), FLOW)
    targets = eqx.filter_jit(Consistency().targets)(draws, IMAGES, LABELS, networks)
    t = jnp.array([0.0, 0.25, 0.5, 0.75])
    s = t + 0.25
    left, right = (1 - t)[:, None, None, None], (1 - s)[:, None, None, None]
    end = line(s) + right * ask(networks.average, s, line(s), 2, KEPT)
    np.testing.assert_allclose(targets.t, t)
    assert_near(targets.velocity, (end - line(t)) / left)
    assert (targets.step_index == 2).all()
    # At time 1 the path is at its end, so there the answer comes from the data alone.
    np.testing.assert_allclose(targets.velocity[3], IMAGES[3] - FLOOR * NOISE[3], atol=1e-4)


def test_distilled_consistency_leads_where_a_step_of_the_frozen_flow_leads(networks):
    targets = eqx.filter_jit(ConsistencyDistillation().targets)(FLOW, IMAGES, LABELS, networks)
    t, h = jnp.floor(FLOW.time * 128) / 128, 1 / 128
    step = line(t) + h * ask(networks.teacher, t, line(t), 7, KEPT)
    step = jnp.clip(step, -4, 4)
    later = ask(networks.average, t + h, step, 7, KEPT)
    end = step + (1 - t - h)[:, None, None, None] * later
    assert_near(targets.velocity, (end - line(t)) / (1 - t)[:, None, None, None])
    assert (targets.step_index == TINY.flow_index).all()


def test_live_reflow_straightens_what_the_flow_field_makes_of_noise(networks):
    flow = FlowDraws(DROP[2:], FLOW.time[2:], NOISE[2:])
    draws = ShortcutDraws(jnp.array([3, 0]), FLOW.time[2:], NOISE[:2], flow)
    objective = LiveReflow(every=2, guidance=1.5)
    targets = eqx.filter_jit(objective.targets)(draws, IMAGES, LABELS, networks)
    x = NOISE
    for i in range(8):
        null = ask(networks.teacher, jnp.asarray(i / 8), x, 7, jnp.full(N, TINY.num_classes))
        x = x + (null + 1.5 * (ask(networks.teacher, jnp.asarray(i / 8), x, 7, LABELS) - null)) / 8
    t = np.floor(np.asarray(draws.time) * 128) / 128
    assert_near(targets.velocity[:2], (x - NOISE)[:2])
    full = t[:, None, None, None]
    assert_near(targets.x_t[:2], (1 - FLOOR * full) * NOISE[:2] + full * x[:2])
    assert targets.step_index.tolist() == [3, 0, 7, 7]
    np.testing.assert_allclose(targets.velocity[2:], IMAGES[2:] - FLOOR * NOISE[2:], atol=1e-5)


def test_live_reflow_uses_one_noise_and_one_index_only_as_published():
    for objective in (LiveReflow(every=2), PublishedLiveReflow(LiveReflow(every=2))):
        published = isinstance(objective, PublishedLiveReflow)
        draws = objective.draw(jax.random.key(0), 16, NETWORK, TrainingTime(0, 1))
        assert np.array_equal(draws.noise, draws.flow.noise) == published
        assert (set(draws.step_index.tolist()) == {0}) == published
        assert TINY.flow_index not in draws.step_index


def test_depths_are_taught_by_the_average_whoever_teaches_the_time_axis(networks):
    objective = LengthConsistency(Progressive(), every=2)
    draws = objective.draw(jax.random.key(0), N, NETWORK, TrainingTime(0, 7))
    targets = eqx.filter_jit(objective.targets)(draws, IMAGES, LABELS, networks)
    velocity = networks.average(
        *(x[2:] for x in (targets.t, targets.x_t, targets.step_index, targets.condition)),
        depth=draws.teacher,
    )
    assert_near(targets.velocity[2:], velocity)


@pytest.mark.parametrize("steps", [70, 1000, 100_000_000])
def test_a_run_has_equal_stages(steps):
    """Progressive steps double, and consistency steps halve, when a seventh of the run is over."""
    edges = [-(-k * steps // 7) for k in range(7)]
    for stage, edge in enumerate(edges):
        for step, expected in ((edge, stage), (edge - 1, max(stage - 1, 0))):
            when = TrainingTime(jnp.asarray(step), steps)
            key = jax.random.key(0)
            assert Progressive().draw(key, 1, NETWORK, when).step_index == 6 - expected
            assert Consistency().draw(key, 1, NETWORK, when).step_index == expected
        starts = [bool(TrainingTime(edge + i, steps).starts_stage(7)) for i in (-1, 0, 1)]
        assert starts == [False, stage > 0, False]
    assert TrainingTime(steps, steps).stage(7) == 6


@pytest.mark.parametrize(
    "objective",
    [
        Progressive(),
        Consistency(),
        ConsistencyDistillation(),
        Shortcut(),
        LiveReflow(times="uniform"),
        MeanFlow(),
        FlowMatching(times="grid"),
        LengthConsistency(FlowMatching(times="grid")),
        PublishedLiveReflow(),
    ],
    ids=str,
)
def test_steps_and_their_grid_need_more_than_one_time_step(objective):
    one = dataclasses.replace(TINY, denoise_timesteps=1)
    message = "needs denoise_timesteps of at least 2, a flow_index of at least 1; got .* of 0"
    with pytest.raises(odelt.InputError, match=message):
        objective.draw(jax.random.key(0), 8, shape_of(denoise_timesteps=1), TrainingTime(0, 1))
    with pytest.raises(odelt.InputError, match=message):
        TrainConfig(one, objective, steps=10)


def test_flow_matching_at_any_times_needs_no_steps():
    one, objective = shape_of(denoise_timesteps=1), LengthConsistency(FlowMatching())
    assert TrainConfig(dataclasses.replace(TINY, denoise_timesteps=1), objective).model.ignore_step
    draws = objective.draw(jax.random.key(0), 8, one, TrainingTime(0, 1))
    assert len(draws.objective.time) == 8


def test_a_deeper_teacher_is_never_shallower_than_its_student():
    network = shape_of(depth=6)
    for batch, every in ((144, 8), (16, 2), (7, 3)):
        objective = LengthConsistency(FlowMatching(), every, teacher_depth="deeper")
        draws = objective.draw(jax.random.key(0), batch, network, TrainingTime(0, 1))
        assert isinstance(draws.student, np.ndarray)
        assert isinstance(draws.teacher, np.ndarray)
        assert (draws.teacher >= draws.student[-len(draws.teacher) :]).all()
    draws = LengthConsistency(FlowMatching(), 2, teacher_depth="deeper").draw(
        jax.random.key(0), 144, network, TrainingTime(0, 1)
    )
    for student, teachers in ((2, (2, 4, 6)), (4, (4, 6)), (6, (6,))):
        own = draws.teacher[draws.student[-72:] == student].tolist()
        assert {own.count(depth) for depth in teachers} == {24 // len(teachers)}
