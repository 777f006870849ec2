"""Targets are what their formulas say, computed from draws that a test can choose."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.interop import PublishedLengthConsistency, PublishedShortcut
from odelt_eqx.objective import (
    TRAIN_TYPES,
    FlowDraws,
    FlowMatching,
    LengthConsistency,
    LengthDraws,
    Networks,
    Progressive,
    Shortcut,
    ShortcutDraws,
    TrainingTime,
)
from tests.conftest import NETWORK, TINY

IMAGES = jax.random.normal(jax.random.key(3), (8, 8, 8, 1))
LABELS = jnp.array([1, 2, 3, 4, 5, 6, 7, 8])
NOISE = jax.random.normal(jax.random.key(4), IMAGES.shape)
START = TrainingTime(step=0, steps=100)
FULL, NULL, FLOW = TINY.depth, TINY.num_classes, TINY.flow_index


def flow_draws(n: int) -> FlowDraws:
    return FlowDraws(drop=jnp.arange(n) % 2 == 0, time=jnp.linspace(0, 0.99, n), noise=NOISE[-n:])


def shortcut_draws() -> ShortcutDraws:
    return ShortcutDraws(
        step_index=jnp.array([0, 3]),
        time=jnp.array([0.7, 0.7]),
        noise=NOISE[:2],
        flow=flow_draws(6),
    )


@pytest.mark.parametrize("times", ["uniform", "grid"])
def test_flow_matching_is_the_straight_line(model, times):
    draws = flow_draws(8)
    targets = FlowMatching(times=times).targets(draws, IMAGES, LABELS, Networks.all(model))
    t = np.asarray(draws.time)
    t = np.floor(128 * t) / 128 if times == "grid" else t
    np.testing.assert_allclose(targets.t, t)
    full = t[:, None, None, None]
    np.testing.assert_allclose(targets.x_t, (1 - full) * NOISE + full * IMAGES, atol=1e-6)
    np.testing.assert_allclose(targets.velocity, IMAGES - NOISE)
    np.testing.assert_array_equal(targets.condition, np.where(draws.drop, NULL, LABELS))
    assert (targets.step_index == FLOW).all()
    assert targets.depth == "full"


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_shortcut_is_two_half_steps_of_the_teacher(model, guidance):
    draws = shortcut_draws()
    objective = Shortcut(every=4, guidance=guidance)
    targets = objective.targets(draws, IMAGES, LABELS, Networks.all(model))

    def velocity(t, x, index, label):
        each = [model(t, x[None], index, jnp.array([y]), depth=FULL)[0] for y in (label, NULL)]
        return each[1] + guidance * (each[0] - each[1])

    for i, (index, t, half) in enumerate([(0, 0.0, 1 / 2), (3, 0.625, 1 / 16)]):
        x = (1 - t) * NOISE[i] + t * IMAGES[i]
        first = velocity(t, x, index + 1, LABELS[i])
        second = velocity(t + half, x + half * first, index + 1, LABELS[i])
        assert (targets.t[i], targets.step_index[i]) == (t, index)
        np.testing.assert_allclose(targets.x_t[i], x, atol=1e-6)
        np.testing.assert_allclose(targets.velocity[i], (first + second) / 2, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(targets.condition[:2], LABELS[:2])


def test_the_rest_of_a_shortcut_batch_is_flow_matching_on_the_other_images(model):
    targets = Shortcut(every=4).targets(shortcut_draws(), IMAGES, LABELS, Networks.all(model))
    flow = FlowMatching(times="grid").targets(
        flow_draws(6), IMAGES[2:], LABELS[2:], Networks.all(model)
    )
    rest = jax.tree.map(lambda x: x[2:], eqx.filter(targets, eqx.is_array))
    for ours, theirs in zip(jax.tree.leaves(rest), jax.tree.leaves(flow), strict=False):
        np.testing.assert_array_equal(ours, theirs)


def test_length_consistency_replaces_the_last_targets_by_another_depth(model):
    student, teacher = np.array([4, 2, 4, 2, 2, 4, 2, 4]), np.array([2, 4])
    draws = LengthDraws(objective=flow_draws(8), student=student, teacher=teacher)
    objective = LengthConsistency(FlowMatching(), every=4)
    targets = objective.targets(draws, IMAGES, LABELS, Networks.all(model))
    base = FlowMatching().targets(flow_draws(8), IMAGES, LABELS, Networks.all(model))
    np.testing.assert_array_equal(targets.depth, student)
    np.testing.assert_array_equal(targets.x_t, base.x_t)
    np.testing.assert_array_equal(targets.velocity[:6], base.velocity[:6])
    for i, depth in ((6, 2), (7, 4)):
        at = slice(i, i + 1)
        expected = model(base.t[at], base.x_t[at], FLOW, base.condition[at], depth=depth)
        np.testing.assert_allclose(targets.velocity[at], expected, rtol=1e-4, atol=1e-5)


OBJECTIVES = [
    *TRAIN_TYPES.values(),
    Shortcut(guidance=1.5),
    Progressive(guidance=1.5),
    *(LengthConsistency(TRAIN_TYPES[name]) for name in ("rfm", "shortcut", "mean-flow")),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_makes_a_finite_batch_without_a_gradient_through_its_teacher(
    model, objective
):
    draws = objective.draw(jax.random.key(0), 8, NETWORK, START)
    targets = objective.targets(draws, IMAGES, LABELS, Networks.all(model))
    assert targets.x_t.shape == targets.velocity.shape == IMAGES.shape
    arrays = jax.tree.leaves(eqx.filter(targets, eqx.is_array))
    assert all(jnp.isfinite(leaf).all() for leaf in arrays)
    assert ((targets.t >= 0) & (targets.t < 1)).all()

    def loss(weights):
        return jnp.sum(objective.targets(draws, IMAGES, LABELS, Networks.all(weights)).velocity)

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(loss)(model)))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_no_two_draws_of_an_objective_are_the_same(objective):
    draws = objective.draw(jax.random.key(0), 32, NETWORK, START)
    floats = [
        leaf.ravel()[:4].tolist()
        for leaf in jax.tree.leaves(draws)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert len({tuple(values) for values in floats}) == len(floats)
    again = objective.draw(jax.random.key(0), 32, NETWORK, START)
    for a, b in zip(jax.tree.leaves(draws), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_depths_are_dealt_out_evenly_and_in_all_pairs():
    objective = LengthConsistency(FlowMatching(), every=8)
    draws = objective.draw(jax.random.key(0), 144, NETWORK, START)
    assert np.unique(draws.student, return_counts=True)[1].tolist() == [72, 72]
    pairs = list(zip(draws.student[-18:].tolist(), draws.teacher.tolist(), strict=True))
    assert all(pairs.count((a, b)) in (4, 5) for a in TINY.depths for b in TINY.depths)


@pytest.mark.parametrize("objective", [Shortcut(every=9), LengthConsistency(every=9)], ids=str)
def test_a_share_that_is_no_example_is_refused(objective):
    with pytest.raises(odelt.InputError, match="every must lie between 1 and the batch size 8"):
        objective.draw(jax.random.key(0), 8, NETWORK, START)


def test_one_noise_key_serves_both_parts_only_as_published():
    for objective in (Shortcut(every=2), PublishedShortcut(Shortcut(every=2))):
        draws = objective.draw(jax.random.key(0), 8, NETWORK, START)
        assert np.array_equal(draws.noise, draws.flow.noise) == isinstance(
            objective, PublishedShortcut
        )


def test_a_guided_shortcut_has_two_targets_only_as_published(model):
    shortcut = Shortcut(every=2, guidance=1.5)
    for objective, distinct in ((shortcut, 4), (PublishedShortcut(shortcut), 2)):
        draws = objective.draw(jax.random.key(0), 8, NETWORK, START)
        targets = objective.targets(draws, IMAGES, LABELS, Networks.all(model))
        assert len(np.unique(np.asarray(targets.x_t[:4]).reshape(4, -1), axis=0)) == distinct
        assert len(np.unique(np.asarray(targets.velocity[:4]).reshape(4, -1), axis=0)) == 4


def test_the_last_images_are_unused_only_as_published(model):
    for objective in (Shortcut(every=4), PublishedShortcut(Shortcut(every=4))):
        draws = objective.draw(jax.random.key(0), 8, NETWORK, START)
        last = IMAGES.at[-2:].set(9.0)
        a, b = (objective.targets(draws, i, LABELS, Networks.all(model)) for i in (IMAGES, last))
        assert np.array_equal(a.x_t, b.x_t) == isinstance(objective, PublishedShortcut)


def test_depths_are_drawn_independently_only_as_published(model):
    dealt = LengthConsistency(FlowMatching(), every=2).draw(jax.random.key(0), 8, NETWORK, START)
    assert isinstance(dealt.student, np.ndarray)
    objective = PublishedLengthConsistency(FlowMatching(), every=2)
    drawn = [objective.draw(jax.random.key(seed), 8, NETWORK, START) for seed in range(8)]
    assert len({tuple(np.asarray(d.student).tolist()) for d in drawn}) > 4
    assert {int(x) for d in drawn for x in (*d.student, *d.teacher)} == set(TINY.depths)
    targets = objective.targets(drawn[0], IMAGES, LABELS, Networks.all(model))
    np.testing.assert_array_equal(targets.depth, drawn[0].student)


def test_without_guidance_and_labels_every_label_is_the_null_label(model):
    objective = Shortcut(every=2, guidance=0.0, class_dropout=1.0)
    draws = objective.draw(jax.random.key(0), 8, NETWORK, START)
    targets = objective.targets(draws, IMAGES, LABELS, Networks.all(model))
    assert (targets.condition == NULL).all()
    other = objective.targets(draws, IMAGES, LABELS[::-1], Networks.all(model))
    np.testing.assert_array_equal(targets.velocity, other.velocity)
