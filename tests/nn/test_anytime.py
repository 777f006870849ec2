"""One integration gives the velocities at all depths where no block is told where it ends."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.interop.reference import dit_from_reference
from odelt_eqx.nn import stacked
from tests.conftest import TINY, assert_matches

DEEP = dataclasses.replace(TINY, depth=7, depth_min=3)
"""Depths 3, 5 and 7: one, two and three groups of two, and a block that no depth reaches."""
X = jax.random.normal(jax.random.key(2), (3, 8, 8, 1))
LABELS = jnp.array([0, 5, 10])
VECTORS = odelt.VectorNetConfig(
    size=3, hidden_size=16, depth=6, depth_min=2, depth_group=2, num_classes=10
)


def awake(config, **changes):
    """A network of this config that is not zero anywhere."""
    model = dataclasses.replace(config, **changes).build(key=jax.random.key(0))
    final = jax.random.normal(jax.random.key(1), model.final.out.weight.shape)
    return eqx.tree_at(lambda m: m.final.out.weight, model, final)


KINDS = [("none", "accumulate"), ("edge", "accumulate"), ("none", "residual"), ("edge", "residual")]


@pytest.mark.parametrize("config", [DEEP, VECTORS], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(
    ("told", "wiring"),
    [KINDS[0], *(pytest.param(*k, marks=pytest.mark.slow) for k in KINDS[1:3]), KINDS[3]],
)
def test_one_pass_gives_what_a_pass_for_each_depth_does(config, told, wiring):
    model = awake(config, length_embedding=told, wiring=wiring)
    x = X if config is DEEP else X[:, :3, 0, 0]
    run = eqx.filter_jit(lambda model, depth: model.evaluate(0.5, x, 7, LABELS, depth))
    velocities, stats = run(model, model.depths)
    for depth, velocity in zip(model.depths, velocities, strict=True):
        assert_matches(velocity, run(model, depth)[0])
    assert jnp.abs(velocities[0] - velocities[-1]).max() > 0.01
    np.testing.assert_array_equal(stats.blocks, 6)
    np.testing.assert_array_equal(stats.solves, 1)
    assert_matches(velocities[:2], model.velocities(0.5, x, 7, LABELS, depths=model.depths[:2]))


def test_examples_may_have_depths_of_their_own():
    model, depth = awake(DEEP, length_embedding="edge"), np.array([7, 3, 5])
    at_all = model.velocities(0.5, X, 7, LABELS)
    chosen = [at_all[(d - 3) // 2][i] for i, d in enumerate(depth)]
    for given in (depth, jnp.asarray(depth)):
        assert_matches(model(0.5, X, 7, LABELS, depth=given), chosen)


def test_a_network_that_is_told_its_depth_runs_a_pass_for_each():
    model = awake(DEEP)
    assert not model.anytime
    velocities, stats = model.evaluate(0.5, X, 7, LABELS, (3, 7))
    for depth, velocity in zip((3, 7), velocities, strict=True):
        assert_matches(velocity, model(0.5, X, 7, LABELS, depth=depth))
    np.testing.assert_array_equal(stats.blocks, 2 + 6)
    np.testing.assert_array_equal(stats.solves, 2)


def test_the_residual_wiring_at_full_depth_is_a_plain_transformer():
    model = awake(TINY, length_embedding="none", wiring="residual")
    plain = model(0.5, X, 7, LABELS, depth="plain")
    assert_matches(model(0.5, X, 7, LABELS), plain)
    assert jnp.abs(model(0.5, X, 7, LABELS, depth=2) - plain).max() > 0.01


@pytest.mark.parametrize(("told", "wiring"), KINDS)
def test_it_is_stacked_truncated_and_stored_as_any_other(tmp_path, told, wiring):
    model = awake(DEEP, length_embedding=told, wiring=wiring)
    shorter = odelt.truncate(model, 5)
    assert shorter.depths == (2, 4)
    assert_matches(shorter(0.5, X, 7, LABELS), model(0.5, X, 7, LABELS, depth=5))
    expected = model.velocities(0.5, X, 7, LABELS)
    assert_matches(stacked(model).velocities(0.5, X, 7, LABELS), expected)
    odelt.save_safetensors(stacked(model), tmp_path / "net.safetensors")
    loaded = odelt.load_safetensors(tmp_path / "net.safetensors")
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.velocities(0.5, X, 7, LABELS), expected)


def test_a_tolerance_chooses_a_depth_for_each_example():
    """From the first depth on, two velocities that differ little end an example."""
    model = awake(DEEP, length_embedding="none")
    at = np.asarray(model.velocities(0.5, X, 7, LABELS))
    rms = lambda v: np.sqrt(np.mean(v**2, axis=(1, 2, 3)))
    change = rms(at[1] - at[0]) / rms(at[1])
    tolerance = float(np.sort(change)[:2].mean())
    velocity, stats = model.evaluate(0.5, X, 7, LABELS, tolerance=tolerance)
    stops = np.where(change < tolerance, 1, 2)
    assert set(stops.tolist()) == {1, 2}
    assert_matches(velocity, [at[k][i] for i, k in enumerate(stops)])
    np.testing.assert_array_equal(stats.depth, 2 * (stops + 1))
    error = [rms(at[k] - at[k - 1])[i] for i, k in enumerate(stops)]
    np.testing.assert_allclose(stats.error, error, rtol=1e-4)
    limited, stats = model.evaluate(0.5, X, 7, LABELS, 5, tolerance=1e-9)
    assert_matches(limited, at[1])
    np.testing.assert_array_equal(stats.depth, 4)


@pytest.mark.parametrize(
    ("told", "arguments", "message"),
    [
        ("depth", {"tolerance": 0.1}, "this network is told its depth beforehand"),
        ("none", {"tolerance": 0.1, "depth": np.array([3, 5, 7])}, "up to one number for all"),
        ("none", {"tolerance": 0.1, "depth": "plain"}, "up to one number for all; got plain"),
        ("none", {"depth": 4}, r"depth must be one of 3, 5, 7 \(in blocks\); got 4"),
    ],
)
def test_a_depth_that_cannot_be_chosen_is_refused(told, arguments, message):
    model = awake(DEEP, length_embedding=told)
    with pytest.raises(odelt.InputError, match=message):
        model(0.5, X, 7, LABELS, **arguments)


@pytest.mark.parametrize("depths", [(), (5, 3), (3, 3), (3, 4)])
def test_depths_that_do_not_rise_are_refused(depths):
    with pytest.raises(odelt.InputError, match=r"depths must rise|depth must be one of"):
        awake(DEEP, length_embedding="none").velocities(0.5, X, 7, LABELS, depths=depths)


@pytest.mark.parametrize("changes", [{"length_embedding": "none"}, {"wiring": "residual"}], ids=str)
def test_the_reference_has_no_such_network(changes):
    with pytest.raises(odelt.InputError, match="networks of the reference have the length_embed"):
        dit_from_reference({}, dataclasses.replace(TINY, **changes))
