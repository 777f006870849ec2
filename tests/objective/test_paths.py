"""Paths, times and couplings against their formulas."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

import odelt_eqx as odelt
from odelt_eqx.config import TrainConfig
from odelt_eqx.objective import (
    DeepSupervision,
    FlowDraws,
    FlowMatching,
    LiveReflow,
    MeanFlow,
    Networks,
    Shortcut,
    TrainingTime,
)
from odelt_eqx.objective.path import couple, times_from
from tests.conftest import NETWORK, TINY

N = 24
IMAGES = jax.random.normal(jax.random.key(3), (N, 8, 8, 1))
NOISE = jax.random.normal(jax.random.key(4), IMAGES.shape)
SPREAD = jax.random.normal(jax.random.key(5), IMAGES.shape)
LABELS = jnp.arange(N) % 3
TIMES = jnp.linspace(0, 0.99, N)
t = np.asarray(TIMES, np.float64)[:, None, None, None]


def targets(model, **fields):
    spread = SPREAD if "sigma" in fields else None
    draws = FlowDraws(jnp.zeros(N, bool), TIMES, NOISE, spread)
    return FlowMatching(**fields).targets(draws, IMAGES, LABELS, Networks.all(model))


def test_a_trigonometric_path_turns_noise_into_data(model):
    found, angle = targets(model, path="trigonometric"), np.pi / 2 * t
    x_t = np.cos(angle) * NOISE + np.sin(angle) * IMAGES
    speed = np.pi / 2 * (np.cos(angle) * IMAGES - np.sin(angle) * NOISE)
    np.testing.assert_allclose(found.x_t, x_t, atol=1e-5)
    np.testing.assert_allclose(found.velocity, speed, atol=1e-5)


def test_a_straight_path_may_keep_noise_at_its_end(model):
    found = targets(model, sigma_min=0.1)
    np.testing.assert_allclose(found.x_t, (1 - 0.9 * t) * NOISE + t * IMAGES, atol=1e-5)
    np.testing.assert_allclose(found.velocity, IMAGES - 0.9 * NOISE, atol=1e-5)


def test_a_wide_path_adds_noise_of_its_own_and_keeps_the_velocity(model):
    narrow, wide = targets(model), targets(model, sigma=0.3)
    np.testing.assert_allclose(wide.x_t, narrow.x_t + 0.3 * SPREAD, atol=1e-6)
    np.testing.assert_array_equal(wide.velocity, narrow.velocity)


def test_times_are_quantiles_of_their_distribution():
    share = jnp.array([0.0, 0.02, 0.3, 0.5, 0.99])
    logistic = 1 / (1 + np.exp(-norm.ppf(np.asarray(share))))
    np.testing.assert_allclose(times_from(share, "logit-normal", 8), logistic, atol=1e-5)
    np.testing.assert_allclose(times_from(share, "grid", 8), [0, 0, 2 / 8, 4 / 8, 7 / 8])
    np.testing.assert_array_equal(times_from(share, "uniform", 8), share)


@pytest.mark.parametrize("times", ["uniform", "logit-normal"])
def test_shifted_times_divide_the_ratio_of_signal_and_noise(times):
    share = jnp.array([0.02, 0.3, 0.5, 0.99])
    before, after = times_from(share, times, 8), times_from(share, times, 8, 4.0)
    np.testing.assert_allclose(after / (1 - after), before / (1 - before) / 4, rtol=1e-4)


@pytest.mark.parametrize("kind", [FlowMatching, Shortcut, LiveReflow, MeanFlow])
def test_the_flow_part_of_every_objective_has_its_times(kind):
    """A batch of 8, of which half are steps where there are any."""
    fields = {} if kind is FlowMatching else {"every": 2}
    objective = kind(times="uniform", time_shift=9.0, **fields)
    flow = objective if kind is FlowMatching else objective.flow
    assert (flow.times, flow.time_shift) == ("uniform", 9.0)
    for times, shift, message in (
        ("uniform", 0.0, "time_shift must be positive; got 0.0"),
        ("grid", 2.0, "times on the grid cannot be shifted by time_shift 2.0"),
    ):
        with pytest.raises(odelt.InputError, match=message):
            kind(times=times, time_shift=shift)


def test_the_nearest_of_several_draws_of_noise_is_coupled(model):
    key, count = jax.random.key(0), 16
    objective = FlowMatching(coupling="nearest", candidates=count)
    draws = objective.draw(key, N, NETWORK, TrainingTime(0, 1))
    found = objective.targets(draws, IMAGES, LABELS, Networks.all(model))
    noise = np.concatenate([draws.noise[None], draws.candidates])
    distances = np.sum((noise - IMAGES) ** 2, (2, 3, 4))
    assert distances.shape == (count, N)
    used = IMAGES - found.velocity
    np.testing.assert_allclose(np.sum((used - IMAGES) ** 2, (1, 2, 3)), distances.min(0), rtol=1e-5)


def test_contrast_is_the_least_error_less_a_share_of_that_to_another_example(model):
    """The best answer to `|v - a|^2 - c |v - b|^2` has no gradient there."""
    c, drop = 0.2, jnp.arange(N) % 4 == 0
    draws = FlowDraws(drop, TIMES, NOISE)
    plain, apart = (
        FlowMatching(contrast=contrast).targets(draws, IMAGES, LABELS, Networks.all(model)).velocity
        for contrast in (0.0, c)
    )
    np.testing.assert_array_equal(apart[drop], plain[drop])
    loss = lambda v: jnp.sum((v - plain) ** 2) - c * jnp.sum((v - jnp.roll(plain, 1, axis=0)) ** 2)
    assert jnp.abs(jax.grad(loss)(apart))[~drop].max() < 1e-4
    assert jnp.abs(jax.grad(loss)(plain))[~drop].max() > 0.1


@pytest.mark.parametrize(
    ("shape", "labels"), [({"num_classes": None}, None), ({"learned": "null"}, LABELS)]
)
def test_there_is_no_contrast_without_conditions(shape, labels):
    config = dataclasses.replace(TINY, **shape)
    networks = Networks.all(eqx.filter_eval_shape(config.build, key=jax.random.key(0)))
    draws = FlowDraws(jnp.zeros(N, bool), TIMES, NOISE)
    found = FlowMatching(contrast=0.2).targets(draws, IMAGES, labels, networks)
    np.testing.assert_allclose(found.velocity, IMAGES - NOISE, atol=1e-6)


def cost(noise, images=IMAGES):
    return float(jnp.sum((noise - images) ** 2))


@pytest.mark.parametrize("labels", [LABELS, jnp.zeros(N, int)], ids=["labels", "one label"])
def test_optimal_transport_is_optimal_within_each_label(labels):
    found = jax.jit(couple)(NOISE, IMAGES, labels)
    best = 0.0
    for label in set(labels.tolist()):
        own = np.asarray(labels) == label
        distances = np.sum(
            (np.asarray(IMAGES)[own, None] - np.asarray(NOISE)[own][None]) ** 2, (2, 3, 4)
        )
        best += distances[linear_sum_assignment(distances)].sum()
        given, kept = (np.unique(np.asarray(x)[own], axis=0) for x in (NOISE, found))
        np.testing.assert_array_equal(given, kept)
    assert cost(found) == pytest.approx(best, rel=1e-5)
    assert cost(found) < 0.97 * cost(NOISE)


def test_optimal_transport_stays_within_labels_whatever_the_scale():
    """Labels bind more strongly than any distance: here crossing them would save most."""
    far = jnp.where((LABELS == 0)[:, None, None, None], 1e4, -1e4) + IMAGES
    near = jnp.roll(far, 1, axis=0) + NOISE
    found = couple(near, far, LABELS)
    for label in range(3):
        own = np.asarray(label == LABELS)
        np.testing.assert_array_equal(*(np.unique(x[own], axis=0) for x in (near, found)))
    same = couple(NOISE, jnp.zeros_like(IMAGES), LABELS)  # every order costs the same
    assert jnp.isfinite(same).all()


def test_coupling_only_reorders_the_noise_of_flow_matching(model):
    plain, optimal = targets(model), targets(model, coupling="optimal")
    start = lambda found: np.asarray(found.x_t - t * found.velocity)
    np.testing.assert_allclose(start(optimal), couple(NOISE, IMAGES, LABELS), atol=1e-5)
    assert np.mean(optimal.velocity**2) < np.mean(plain.velocity**2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": -1.0}, "sigma must not be negative; got -1.0"),
        ({"sigma_min": 2.0}, r"sigma_min must lie in \[0, 1\]; got 2.0"),
        ({"sigma_min": 0.1, "path": "trigonometric"}, "sigma_min belongs to the straight path"),
        ({"candidates": 0}, "candidates must be at least 1; got 0"),
        ({"contrast": 1.0}, r"contrast must lie in \[0, 1\); got 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(odelt.InputError, match=message):
        FlowMatching(**fields)


def test_an_unknown_name_is_refused(any_types):
    with pytest.raises(odelt.InputError, match="path must be one of straight, trigonometric; got"):
        FlowMatching(path="curved")


def test_the_width_of_a_path_has_draws_of_its_own():
    draws = FlowMatching(sigma=0.1).draw(jax.random.key(0), 8, NETWORK, TrainingTime(0, 1))
    assert abs(np.corrcoef(np.ravel(draws.noise), np.ravel(draws.spread))[0, 1]) < 0.2
    assert FlowMatching().draw(jax.random.key(0), 8, NETWORK, TrainingTime(0, 1)).spread is None


def test_vectors_are_not_coupled_by_optimal_transport():
    """Each vector would see a part of the noise alone, which sampling does not know."""
    config = odelt.VectorNetConfig(
        size=2, hidden_size=8, depth=2, depth_min=1, depth_group=1, condition_size=1
    )
    draw = lambda flow, network: flow.draw(jax.random.key(0), 8, network, TrainingTime(0, 1))
    vectors = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    message = "coupling optimal would bind each vector of a condition to a part of the noise"
    optimal = FlowMatching(coupling="optimal")
    for flow in (optimal, DeepSupervision(optimal)):
        with pytest.raises(odelt.InputError, match=message):
            TrainConfig(dataclasses.replace(config, length_embedding="none"), flow)
    with pytest.raises(odelt.InputError, match=message):
        draw(optimal, vectors)
    for flow in (dataclasses.replace(optimal, class_dropout=1.0), FlowMatching()):
        assert draw(flow, vectors).noise.shape == (8, 2)
    classes = dataclasses.replace(config, condition_size=None, num_classes=2)
    assert draw(optimal, eqx.filter_eval_shape(classes.build, key=jax.random.key(0))) is not None
