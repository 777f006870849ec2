"""One network in two layouts computes the same, and can be carried from one to the other."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn import stacked, unstacked
from tests.conftest import TINY, assert_matches

LONG = dataclasses.replace(TINY, depth=7, depth_min=3, dropout=0.5)
"""Three groups of two, and a block that no depth reaches."""


@pytest.fixture(scope="module")
def pair() -> tuple[odelt.DiT, odelt.DiT]:
    """A network with arrays for every block, and the same one stacked."""
    model = odelt.DiT(LONG, key=jax.random.key(0))
    final = jax.random.normal(jax.random.key(1), model.final.out.weight.shape)
    model = eqx.tree_at(lambda m: m.final.out.weight, model, final)
    return model, stacked(model)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_there_and_back_is_where_it_began(pair):
    model, together = pair
    assert len(jax.tree.leaves(together.groups)) == 4 / 7 * len(jax.tree.leaves(model.groups))
    assert_same(unstacked(together), model)
    assert stacked(together) is together
    assert unstacked(model) is model


def test_a_key_draws_the_same_network_in_both_layouts():
    draw = lambda config: odelt.DiT(config, key=jax.random.key(3))
    assert_same(draw(dataclasses.replace(LONG, stacked=True)), stacked(draw(LONG)))


@pytest.mark.parametrize(
    "depth", [pytest.param(3, marks=pytest.mark.thorough), 5, 7, "plain", np.array([7, 3, 5])]
)
@pytest.mark.parametrize("key", [None, jax.random.key(5)])
def test_both_layouts_are_one_network(pair, depth, key):
    x = jax.random.normal(jax.random.key(2), (3, 8, 8, 1))
    call = lambda model: model(0.5, x, 7, jnp.array([0, 5, 10]), depth=depth, key=key)
    ours, theirs = map(eqx.filter_jit(call), pair)
    assert_matches(ours, theirs)


def test_a_stacked_network_can_be_cut_short(pair):
    ours, theirs = (odelt.truncate(model, 5) for model in pair)
    assert ours.config == dataclasses.replace(LONG, depth=4, depth_min=2)
    assert_same(unstacked(theirs), ours)


def test_a_file_holds_blocks_one_by_one(pair, tmp_path):
    model, together = pair
    odelt.save_safetensors(together, tmp_path / "net.safetensors")
    assert_same(odelt.load_safetensors(tmp_path / "net.safetensors"), model)
