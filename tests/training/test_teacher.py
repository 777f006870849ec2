"""The teacher: made, frozen or replaced at each stage, saved and restored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.objective import (
    ConsistencyDistillation,
    FlowMatching,
    LengthConsistency,
    LiveReflow,
    Progressive,
    Shortcut,
)
from odelt_eqx.training.checkpoint import Checkpoints
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import held_out_loss, init_state, make_train_step
from odelt_eqx.training.train import train
from odelt_eqx.training.weights import add_teacher
from tests.conftest import TINY, TINY_RUN
from tests.training.conftest import POINTS_RUN
from tests.training.test_run import PowerCutError, cut_power_after

POINTS = jnp.linspace(-1, 1, 16).reshape(8, 2)
LABELS = jnp.arange(8) % 2
CONFIG = dataclasses.replace(POINTS_RUN.model, denoise_timesteps=4)  # two stages
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup=0), 100)


def assert_same(a, b):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def state_add_teacher():
    state = init_state(CONFIG.build(key=jax.random.key(0)), OPTIMIZER)
    teacher = jax.tree.map(lambda x: x + 0.1, state.ema)  # a fresh network has no velocity
    return dataclasses.replace(state, teacher=teacher)


@pytest.mark.thorough
def test_the_teacher_of_a_stage_is_the_average_from_the_end_of_the_one_before():
    """Five steps of two stages: the second begins at step 3."""
    state = state_add_teacher()
    train_step = make_train_step(Progressive(), OPTIMIZER, ema=0.5, steps=5)
    given, averages, teachers = copy(state.teacher), [], []
    for step in range(5):
        state, _ = train_step(state, POINTS, LABELS, jax.random.key(step))
        averages.append(copy(state.ema))
        teachers.append(copy(state.teacher))
    for teacher, source in zip(teachers, [given] * 3 + [averages[2]] * 2, strict=True):
        assert_same(teacher, source)
    assert differ(averages[2], averages[1])


def test_one_program_serves_every_stage(monkeypatch):
    traced, draw = [], Progressive.draw
    monkeypatch.setattr(Progressive, "draw", lambda *args: traced.append(args) or draw(*args))
    train_step = make_train_step(Progressive(), OPTIMIZER, ema=0.5, steps=2)
    state = state_add_teacher()
    for step in range(2):
        state, _ = train_step(state, POINTS, LABELS, jax.random.key(step))
    assert len(traced) == 1


def test_a_frozen_teacher_stands_still():
    state = state_add_teacher()
    teacher = copy(state.teacher)
    train_step = make_train_step(ConsistencyDistillation(), OPTIMIZER, ema=0.5, steps=4)
    for step in range(4):
        state, _ = train_step(state, POINTS, LABELS, jax.random.key(step))
    assert_same(state.teacher, teacher)
    assert differ(state.ema, teacher)


def test_the_held_out_loss_sees_the_teacher_of_its_stage():
    """Where a stage is over, it measures with the teacher that the next step will have."""
    state = dataclasses.replace(state_add_teacher(), step=jnp.asarray(2))
    louder = jax.tree.map(lambda x: x + 0.2, state.ema)
    begun = dataclasses.replace(state, ema=louder)
    loss = lambda s: float(held_out_loss(s, Progressive(), POINTS, LABELS, jax.random.key(0), 4))
    assert loss(begun) == loss(dataclasses.replace(begun, teacher=copy(louder)))
    later = dataclasses.replace(begun, step=jnp.asarray(3))
    assert loss(later) != loss(dataclasses.replace(later, teacher=copy(louder)))


def test_distilling_without_a_teacher_is_refused():
    state = init_state(CONFIG.build(key=jax.random.key(0)), OPTIMIZER)
    train_step = make_train_step(Progressive(), OPTIMIZER, ema=0.5, steps=4)
    with pytest.raises(odelt.InputError, match="distils a trained network: give the state a teach"):
        train_step(state, POINTS, LABELS, jax.random.key(0))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A file with a network that does not see its step."""
    path = tmp_path_factory.mktemp("flow") / "flow.safetensors"
    config = dataclasses.replace(TINY, ignore_step=True)
    odelt.save_safetensors(odelt.DiT(config, key=jax.random.key(2)), path)
    return str(path)


def start(objective, **changes):
    """The state that a run starts with."""
    config = dataclasses.replace(TINY_RUN, objective=objective, **changes)
    return add_teacher(init_state(config.model.build(key=jax.random.key(1)), OPTIMIZER), config)


def test_who_teaches_at_the_beginning(tiny_run, flow):
    average = odelt.load(tiny_run)
    assert start(Shortcut()).teacher is None
    assert start(Shortcut(), init_from=str(tiny_run)).teacher is None
    for objective in (Shortcut(), LiveReflow(), LengthConsistency(Shortcut())):
        assert_same(start(objective, teacher=str(tiny_run)).teacher, average)
    for sources in ({"init_from": str(tiny_run)}, {"init_from": flow, "teacher": str(tiny_run)}):
        teacher = start(ConsistencyDistillation(), **sources).teacher
        assert_same(teacher, average)
        assert teacher.config == average.config  # it sees its step, which the student does not
    assert_same(start(Progressive(), init_from=flow).teacher, odelt.load_safetensors(flow))


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (Progressive(), {}, "distils a trained network; give teacher or init_from"),
        (FlowMatching(), {"teacher": "RUN"}, "FlowMatching learns from data alone; leave out teac"),
        (
            LengthConsistency(FlowMatching()),
            {"teacher": "RUN"},
            "learns from data alone; leave out teacher",
        ),
        (
            Shortcut(),
            {"teacher": "RUN", "model": dataclasses.replace(TINY, num_classes=3)},
            "has num_classes 10, not 3",
        ),
        (Progressive(), {"teacher": "RUN"}, "was trained to see its step; distil a flow instead"),
        (
            Progressive(),
            {"teacher": "FLOW", "model": dataclasses.replace(TINY, hidden_size=32)},
            r"has patch_embedding\.weight of shape \(16, 16\), not \(32, 16\)",
        ),
    ],
)
def test_a_teacher_that_is_of_no_use_is_refused(tiny_run, flow, objective, changes, message):
    paths = {"RUN": str(tiny_run), "FLOW": flow}
    changes = {k: paths[v] if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(odelt.InputError, match=message):
        start(objective, **changes)


@pytest.mark.thorough
def test_a_larger_network_may_teach(tmp_path):
    """A teacher that is never replaced only has to share the data, classes and steps."""
    path = str(tmp_path / "large.safetensors")
    odelt.save_safetensors(POINTS_RUN.model.build(key=jax.random.key(2)), path)
    small = dataclasses.replace(POINTS_RUN.model, hidden_size=8, depth=1)
    state = start(ConsistencyDistillation(), model=small, teacher=path)
    train_step = make_train_step(ConsistencyDistillation(), OPTIMIZER, ema=0.5, steps=4)
    after, metrics = train_step(state, POINTS, LABELS, jax.random.key(0))
    assert np.isfinite(metrics["loss"])
    assert after.teacher.config.hidden_size == 16


def items(run):
    """What the newest checkpoint holds."""
    steps = [int(p.name) for p in (run / "checkpoints").iterdir() if p.is_dir()]
    return {p.name for p in (run / "checkpoints" / str(max(steps))).iterdir()}


@pytest.mark.thorough
def test_a_resumed_distillation_ends_with_the_same_bits(points_run, tmp_path, monkeypatch):
    """Its teacher is in the checkpoint: what it was copied from may be gone."""
    monkeypatch.setattr("odelt_eqx.training.train.held_out_loss", lambda *_: 0.0)  # not tested here
    source = tmp_path / "flow.safetensors"
    flow = dataclasses.replace(CONFIG, ignore_step=True).build(key=jax.random.key(0))
    odelt.save_safetensors(jax.tree.map(lambda x: x + 0.1, flow), source)
    config = dataclasses.replace(
        POINTS_RUN, model=CONFIG, objective=Progressive(), init_from=str(source), save_every=4
    )
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_power_after(5, patch)
        with pytest.raises(PowerCutError):
            train(config, tmp_path / "cut")
    source.unlink()
    resumed = train(config, tmp_path / "cut", resume=True)
    for which in ("model", "ema", "teacher"):
        assert_same(getattr(resumed, which), getattr(whole, which))
    assert differ(whole.teacher, flow)  # the second stage has begun
    assert {"teacher", "teacher_config"} <= items(tmp_path / "cut")
    assert not {"teacher", "teacher_config"} & items(points_run)


def test_a_teacher_of_another_shape_comes_back_from_a_checkpoint(tiny_run, tmp_path):
    small = dataclasses.replace(TINY, hidden_size=8, depth=2)
    state = start(Shortcut(), model=small, teacher=str(tiny_run))
    config = dataclasses.replace(TINY_RUN, model=small)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config)
        back = checkpoints.restore(dataclasses.replace(state, teacher=None))
    assert_same(back.teacher, odelt.load(tiny_run))
    assert back.teacher.config == state.teacher.config
