"""The network of vectors: the same contract as the transformer's, on vectors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt

SHAPE = {"size": 3, "hidden_size": 16, "depth": 4, "depth_min": 2, "depth_group": 2}
KINDS = {"none": {}, "classes": {"num_classes": 5}, "vector": {"condition_size": 2}}
CONDITIONS = {
    "none": None,
    "classes": jnp.array([0, 5, 1, 2]),
    "vector": jnp.arange(8.0).reshape(4, 2).at[1].set(jnp.nan),
}
X = jax.random.normal(jax.random.key(2), (4, 3))


def network(kind="none", **changes):
    config = odelt.VectorNetConfig(**SHAPE | KINDS[kind] | changes)
    fresh = odelt.VectorNet(config, key=jax.random.key(0))
    weight = jax.random.normal(jax.random.key(1), fresh.final.out.weight.shape)
    return eqx.tree_at(lambda n: n.final.out.weight, fresh, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_do_not_see_each_other_and_leave_at_their_depth(kind):
    net, condition = network(kind), CONDITIONS[kind]
    depth = np.array([2, 4, 4, 2])
    together = net(0.3, X, 7, condition, depth=depth)
    assert jnp.isfinite(together).all()
    for i, own in enumerate(depth.tolist()):
        one = None if condition is None else condition[i : i + 1]
        alone = net(0.3, X[i : i + 1], 7, one, depth=own)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["classes", "vector"])
def test_a_condition_matters_and_its_null_is_one_of_its_own(kind):
    net, condition = network(kind), CONDITIONS[kind]
    velocity = net(0.3, X, 7, condition)
    free = net(0.3, X, 7, net.null(4))
    changed = jnp.abs(velocity - free).max(axis=1) > 1e-4
    assert changed.tolist() == [True, False, True, True]


@pytest.mark.parametrize("depth", [2, 4, "plain"])
def test_each_depth_is_another_velocity(depth):
    net = network()
    others = {2, 4, "plain"} - {depth}
    for other in others:
        difference = net(0.3, X, 7, depth=depth) - net(0.3, X, 7, depth=other)
        assert jnp.abs(difference).max() > 1e-3


def test_the_gradient_of_a_null_condition_is_finite():
    net = network("vector")
    loss = lambda net: jnp.sum(net(0.3, X, 7, CONDITIONS["vector"]) ** 2)
    gradient = eqx.filter_grad(loss)(net)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16; got 'float16'"),
        ({"learned": "nul"}, "learned must be one of both, condition, null; got 'nul'"),
        ({"depth": 4.0}, r"depth must be a whole number; got 4\.0"),
        ({"hidden_size": 8.5}, r"hidden_size must be a whole number; got 8\.5"),
        ({"size": (2,)}, r"size must be a whole number; got \(2,\)"),
    ],
)
def test_a_config_that_no_network_has_is_refused(any_types, change, message):
    with pytest.raises(odelt.InputError, match=message):
        odelt.VectorNetConfig(**SHAPE | change)


def test_a_condition_is_a_class_or_a_vector():
    with pytest.raises(odelt.InputError, match="give num_classes or condition_size, not both"):
        odelt.VectorNetConfig(**SHAPE, num_classes=2, condition_size=3)
