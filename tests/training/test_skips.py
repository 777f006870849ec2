"""Bad steps are skipped and counted; gradients are clipped; batches are trained in parts."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.data import ArraySource, stream
from odelt_eqx.errors import DivergedError
from odelt_eqx.interop.published import PublishedLengthConsistency, PublishedShortcut
from odelt_eqx.objective import FlowMatching, LengthConsistency, MeanFlow, Shortcut
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.skips import RecentBatches, Skips
from odelt_eqx.training.step import init_state, make_train_step
from odelt_eqx.training.train import train
from tests.training.conftest import POINTS_RUN

POINTS = jnp.linspace(-1, 1, 32).reshape(16, 2)
LABELS = jnp.arange(16) % 2
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup=0), 100)


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def assert_same(a, b):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def weights_of(state):
    return state.model, state.ema, state.opt_state


def test_a_bad_step_only_counts():
    state = init_state(POINTS_RUN.model.build(key=jax.random.key(0)), OPTIMIZER)
    train_step = make_train_step(FlowMatching(), OPTIMIZER, steps=100, ema=0.9, max_skipped=2)
    bad = POINTS.at[3, 0].set(jnp.nan)
    state, _ = train_step(state, POINTS, LABELS, jax.random.key(0))
    before = copy(weights_of(state))
    state, metrics = train_step(state, bad, LABELS, jax.random.key(1))
    assert_same(weights_of(state), before)
    counts = lambda s: (int(s.step), int(s.skips.total), int(s.skips.in_a_row))
    assert counts(state) == (2, 1, 1)
    assert float(metrics["skipped"]) == 1
    state, _ = train_step(state, POINTS, LABELS, jax.random.key(2))
    assert counts(state) == (3, 1, 0)
    for step in range(2):
        state, _ = train_step(state, bad, LABELS, jax.random.key(3 + step))
    before = copy(weights_of(state))
    state, _ = train_step(state, POINTS, LABELS, jax.random.key(5))
    assert counts(state) == (6, 4, 3)  # the limit was reached: nothing is taken any more
    assert_same(weights_of(state), before)


def spoil_examples(monkeypatch, every):
    """Make one example in `every` not a number."""

    kind = type(POINTS_RUN.data)
    open_split = kind.open

    def open_spoilt(data, split):
        good = open_split(data, split)
        x = good.x.copy()
        x[::every] = np.nan
        return ArraySource(x, good.condition)

    monkeypatch.setattr(kind, "open", open_spoilt)


def test_too_many_bad_steps_stop_the_run_and_name_the_data(tmp_path, monkeypatch):
    run, optimizer = tmp_path / "run", OptimizerConfig(max_skipped=5, warmup=0)
    config = dataclasses.replace(
        POINTS_RUN, optimizer=optimizer, steps=20, log_every=20, eval_every=20, save_every=7
    )
    spoil_examples(monkeypatch, 1)
    with pytest.raises(DivergedError) as error:
        train(config, run)
    message = str(error.value)
    assert "not finite in 5 steps in a row; step 5 was the last of them, on the examples" in message
    assert message.endswith("; there is no checkpoint yet")
    named = [int(i) for i in message.split("examples ")[1].split(";")[0].split(", ")]
    batches = stream(config.data.open("train"), 16, config.seed)
    assert named == [next(batches)["index"].tolist() for _ in range(5)][-1]


def test_a_resumed_run_with_a_lower_limit_stops_without_knowing_the_examples():
    """Step 5 was the third in a row; the run was resumed after step 10."""
    recent = RecentBatches(4)
    recent.add(11, np.arange(3))
    skips = Skips(jnp.asarray(9), jnp.asarray(9))
    with pytest.raises(DivergedError, match="step 5 was the last of them; there is no checkpoint"):
        recent.check(skips, 3, 11, lambda: "there is no checkpoint yet")


@pytest.mark.thorough
def test_skipped_steps_are_counted_in_the_metrics(tmp_path, monkeypatch):
    spoil_examples(monkeypatch, 40)  # about one batch in three
    config = dataclasses.replace(POINTS_RUN, steps=8, log_every=1, eval_every=8, save_every=8)
    state = train(config, tmp_path / "run")
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    assert 0 < skipped[-1] < 8
    assert skipped[-1] == int(state.skips.total)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(weights_of(state)))


def test_a_gradient_is_clipped_to_its_norm():
    config = OptimizerConfig(learning_rate=1.0, warmup=0, clip_norm=0.5)
    gradient = {"a": jnp.full(4, 3.0), "b": jnp.full(4, 4.0)}  # norm 10
    clipped = jax.tree.map(lambda g: g / 20, gradient)
    plain = make_optimizer(dataclasses.replace(config, clip_norm=None), 10)
    ours = make_optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    _, state = ours.update(gradient, ours.init(zeros), zeros)
    _, expected = plain.update(clipped, plain.init(zeros), zeros)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(FlowMatching(), marks=pytest.mark.thorough),
        pytest.param(LengthConsistency(Shortcut(every=4), every=4), marks=pytest.mark.slow),
        pytest.param(LengthConsistency(MeanFlow(), every=4), marks=pytest.mark.slow),
        pytest.param(
            PublishedLengthConsistency(PublishedShortcut(Shortcut(every=4)), every=4),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(objective):
    """SGD of rate 1 makes the step the gradient; three depths do not divide a part evenly."""
    sgd = optax.sgd(1.0)
    shape, ignores = POINTS_RUN.model, not objective.trains_steps
    config = dataclasses.replace(shape, depth=3, dropout=0.2, ignore_step=ignores)

    def step(parts):
        state = init_state(config.build(key=jax.random.key(0)), sgd)
        train_step = make_train_step(objective, sgd, steps=100, ema=0.9, parts=parts)
        final = jax.random.normal(jax.random.key(7), state.model.final.out.weight.shape) / 4
        where = lambda s: (s.model.final.out.weight, s.ema.final.out.weight)
        state = eqx.tree_at(where, state, (final, jnp.copy(final)))  # a fresh network is zero
        return train_step(state, POINTS, LABELS, jax.random.key(1))

    (whole, metrics), (parts, part_metrics) = step(1), step(4)
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(part_metrics[name]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(whole.model), jax.tree.leaves(parts.model), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * (1 + float(metrics["grad_norm"])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "accumulate must divide batch_size 16; got 3"),
        ({"accumulate": 0}, "accumulate must be at least 1; got 0"),
        ({"keep": 0}, "keep must be at least 1; got 0"),
        ({"keep_every": 4}, "keep_every must be a multiple of save_every 3, or None; got 4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(odelt.InputError, match=message):
        dataclasses.replace(POINTS_RUN, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be positive; got 0.0"),
        ({"max_skipped": 0}, "max_skipped must be at least 1; got 0"),
    ],
)
def test_limits_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(odelt.InputError, match=message):
        OptimizerConfig(**changes)
