"""The transformer's contract beyond its recorded numbers."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn.embeddings import patchify, position_table, unpatchify
from tests.conftest import TINY

X = jax.random.normal(jax.random.key(2), (3, 8, 8, 1))
LABELS = jnp.array([0, 5, 10])


def test_a_new_network_has_no_velocity():
    fresh = odelt.DiT(TINY, key=jax.random.key(0))
    np.testing.assert_array_equal(fresh(0.5, X, 7, LABELS, depth=4), 0)


def test_one_time_and_step_for_all_is_the_same_as_one_for_each(model):
    each = model(jnp.full(3, 0.25), X, jnp.full(3, 2), LABELS, depth=2)
    np.testing.assert_allclose(model(0.25, X, 2, LABELS, depth=2), each, rtol=1e-6)


def test_examples_do_not_see_each_other(model):
    together = model(0.5, X, 7, LABELS, depth=4)
    alone = model(0.5, X[1:2], 7, LABELS[1:2], depth=4)
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_each_input_matters(model):
    base = model(0.5, X, 7, LABELS, depth=2)
    for other in (
        model(0.6, X, 7, LABELS, depth=2),
        model(0.5, X, 6, LABELS, depth=2),
        model(0.5, X, 7, LABELS - 1 + 2 * (LABELS == 0), depth=2),
        model(0.5, X, 7, LABELS, depth=4),
    ):
        assert jnp.abs(other - base).max() > 1e-4


def test_a_network_without_steps_ignores_its_step_index(model):
    config = dataclasses.replace(TINY, ignore_step=True)
    deaf = odelt.DiT(config, key=jax.random.key(0))
    deaf = eqx.tree_at(lambda m: m.final, deaf, model.final)
    np.testing.assert_array_equal(
        deaf(0.5, X, 7, LABELS, depth=2), deaf(0.5, X, 0, LABELS, depth=2)
    )


@pytest.mark.parametrize("depth", [2, "plain"])
def test_dropout_needs_a_key_and_is_used_once_per_key(model, depth):
    noisy = eqx.tree_at(
        lambda m: [b.mlp.out.weight for b in m.blocks],
        odelt.DiT(dataclasses.replace(TINY, dropout=0.5), key=jax.random.key(0)),
        [b.mlp.out.weight for b in model.blocks],
    )
    noisy = eqx.tree_at(lambda m: m.final, noisy, model.final)
    call = lambda key: noisy(0.5, X, 7, LABELS, depth=depth, key=key)
    np.testing.assert_array_equal(call(None), call(None))
    np.testing.assert_array_equal(call(jax.random.key(1)), call(jax.random.key(1)))
    assert jnp.abs(call(jax.random.key(1)) - call(jax.random.key(2))).max() > 1e-3


def test_bfloat16_is_close_and_leaves_parameters_and_output_in_float32(model):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    half = odelt.DiT(config, key=jax.random.key(0))
    half = jax.tree.unflatten(jax.tree.structure(half), jax.tree.leaves(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    ours, exact = (m(0.5, X, 7, LABELS, depth=4) for m in (half, model))
    assert ours.dtype == jnp.float32
    error = jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < 0.03


def test_patches_and_back():
    image = jnp.arange(8 * 8 * 3.0).reshape(8, 8, 3)
    tokens = patchify(image, 2)
    assert tokens.shape == (16, 12)
    np.testing.assert_array_equal(tokens[1], image[:2, 2:4].ravel())
    np.testing.assert_array_equal(unpatchify(tokens, 2), image)
    wide = image[:4]
    np.testing.assert_array_equal(patchify(wide, 2), tokens[:8])
    np.testing.assert_array_equal(unpatchify(tokens[:8], 2, (2, 4)), wide)


def test_a_network_takes_images_that_are_no_squares():
    """A patch is where it was cut: what one does to the velocity is strongest there."""
    config = dataclasses.replace(TINY, image_size=(8, 12), patch_size=2)
    assert config.grid == (4, 6)
    model = config.build(key=jax.random.key(0))
    final = jax.random.normal(jax.random.key(1), model.final.out.weight.shape)
    model = eqx.tree_at(lambda m: m.final.out.weight, model, final)
    x = jax.random.normal(jax.random.key(2), (1, 8, 12, 1))
    velocity = lambda x: model(0.5, x, 5, jnp.array([3]))[0, ..., 0]
    change = jnp.abs(velocity(x.at[0, 2:4, 10:12].add(3.0)) - velocity(x))
    assert change.shape == (8, 12)
    patches = change.reshape(4, 2, 6, 2).mean((1, 3))
    assert np.unravel_index(int(patches.argmax()), (4, 6)) == (1, 5)
    with pytest.raises(odelt.InputError, match=r"multiple of patch_size 2; got \(8, 9\)"):
        dataclasses.replace(config, image_size=(8, 9))


def test_the_position_table_tells_every_place_from_every_other():
    table = position_table(8, 32)
    wide = position_table((2, 8), 32)  # of a part of the square
    np.testing.assert_array_equal(wide, table[:16])
    tall = position_table((8, 2), 32).reshape(8, 2, 32)
    np.testing.assert_array_equal(tall, table.reshape(8, 8, 32)[:, :2])
    distances = np.linalg.norm(table[:, None] - table, axis=-1) + 9 * np.eye(64)
    assert distances.min() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "image_size must be a multiple of patch_size 3; got 8"),
        ({"hidden_size": 18, "num_heads": 4}, "hidden_size must be a multiple of num_heads 4"),
        ({"depth_min": 1}, "depth_min must lie between depth_group 2 and depth 4; got 1"),
        ({"depth_min": 3}, "depth must be depth_min 3 plus a multiple of depth_group 2; got 4"),
        ({"num_classes": 0}, "num_classes must be at least 1; got 0"),
        ({"denoise_timesteps": 100}, "denoise_timesteps must be a power of two; got 100"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(change, message):
    with pytest.raises(odelt.InputError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 8.0}, r"image_size must be a whole number or 2 whole numbers; got 8\.0"),
        ({"image_size": None}, "image_size must be a whole number or 2 whole numbers; got None"),
        ({"image_size": (8, 4, 1)}, r"or 2 whole numbers; got \(8, 4, 1\)"),
        ({"channels": True}, "channels must be a whole number; got True"),
        ({"hidden_size": "16"}, "hidden_size must be a whole number; got '16'"),
        ({"depth": None}, "depth must be a whole number; got None"),
        ({"num_classes": 2.0}, r"num_classes must be a whole number or None; got 2\.0"),
        ({"dropout": "0.1"}, r"dropout must be a number; got '0\.1'"),
        ({"stacked": 1}, "stacked must be true or false; got 1"),
        ({"length": "euler"}, "length must be FixedSteps or Adaptive; got 'euler'"),
        ({"length": None}, "length must be FixedSteps or Adaptive; got None"),
    ],
)
def test_a_value_of_another_type_is_refused(any_types, change, message):
    with pytest.raises(odelt.InputError, match=message):
        dataclasses.replace(TINY, **change)


def test_numbers_of_other_libraries_and_lists_are_taken(any_types, tmp_path):
    """A config is hashed, compared with others and written."""
    numbers: dict[str, Any] = {
        "image_size": [np.int64(8), 8],
        "channels": np.int64(1),
        "num_heads": jnp.int32(2),
        "dropout": np.float32(0.5),
        "rope": np.bool_(False),
        "length": odelt.FixedSteps(jnp.array(2)),
    }
    plain = {"image_size": (8, 8), "dropout": 0.5, "length": odelt.FixedSteps(2)}
    config = dataclasses.replace(TINY, **numbers)
    assert config == dataclasses.replace(TINY, **plain)
    assert dataclasses.replace(TINY, image_size=np.int64(8)) == TINY
    odelt.save_safetensors(config.build(key=jax.random.key(0)), tmp_path / "model.safetensors")
    assert odelt.load_safetensors(tmp_path / "model.safetensors").config == config


@pytest.mark.parametrize("depth", [5, np.array([2, 4, 5]), jnp.array([2, 4, 5])])
def test_a_depth_the_network_has_not_is_refused_with_those_it_has(model, depth):
    with pytest.raises(odelt.InputError, match=r"depth must be one of 2, 4 \(in blocks\); got 5"):
        model(0.5, X, 7, LABELS, depth=depth)


def test_a_traced_depth_the_network_has_not_is_refused(model):
    call = eqx.filter_jit(lambda d: model(0.5, X, 7, LABELS, depth=d))
    with pytest.raises(eqx.EquinoxRuntimeError, match="depth must be one of"):
        jax.block_until_ready(call(jnp.array([2, 4, 5])))


def test_a_wrong_shape_is_refused(model):
    with pytest.raises(odelt.InputError, match=r"states must have shape \(batch, 8, 8, 1\)"):
        model(0.5, X[:, :4], 7, LABELS, depth=2)


def test_no_block_runs_for_an_example_that_is_done(model):
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model.groups[1])
    broken = eqx.tree_at(lambda m: m.groups[1], model, nan)
    velocity = broken(0.5, X, 7, LABELS, depth=np.array([2, 4, 2]))
    assert jnp.isnan(velocity).any(axis=(1, 2, 3)).tolist() == [False, True, False]
    expected = model(0.5, X, 7, LABELS, depth=2)
    np.testing.assert_allclose(velocity[::2], expected[::2], rtol=1e-4, atol=1e-5)


def test_sampling_one_sample_copies_no_weights(model):
    """What a network evaluation needs beside its weights does not grow with them."""

    def scratch(width):
        config = dataclasses.replace(TINY, hidden_size=width, num_heads=2)
        network = odelt.DiT(config, key=jax.random.key(0))
        call = eqx.filter_jit(lambda m, x, y: m(0.5, x, 7, y, depth=4))
        program = call.lower(network, X[:1], LABELS[:1]).compile().compiled
        return program.memory_analysis().temp_size_in_bytes / width

    assert scratch(256) < 1.5 * scratch(128)
