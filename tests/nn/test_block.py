"""What may be chosen of the DiT block: closed forms, and that every choice is one network."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn import stacked
from odelt_eqx.nn.block import Attention
from odelt_eqx.nn.embeddings import rotate
from odelt_eqx.nn.layers import Mlp, Norm
from tests.conftest import TINY, assert_matches

INSIDE = {"qk_norm": True, "logit_scale": "inverse-sqrt", "norm": "rms"}
AROUND = {"rope": True, "mlp": "swiglu", "modulation": "shared"}
ALL = {**INSIDE, **AROUND, "norm": "scaled-rms"}
WIDE = dataclasses.replace(TINY, image_size=(8, 12), length_embedding="edge")
"""Images that are no squares, in a network that is told the edge of each group."""


def randomised(network):
    """The network with every weight drawn, so that none of its parts is without effect."""
    leaves, structure = jax.tree.flatten(network)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(INSIDE, id="inside", marks=pytest.mark.slow),
        pytest.param(AROUND, id="around", marks=pytest.mark.slow),
        pytest.param(ALL, id="all", marks=pytest.mark.thorough),
    ],
)
def test_every_choice_is_one_network_in_both_layouts(choice):
    """Its velocities at all depths, and their gradient, which reaches every weight."""
    ours = randomised(dataclasses.replace(WIDE, **choice).build(key=jax.random.key(0)))
    x, labels = jax.random.normal(jax.random.key(2), (3, *WIDE.shape)), jnp.array([0, 5, 10])

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def run(model):
        velocities = model.velocities(0.5, x, 6, labels, depths=(2, 4))
        return jnp.mean(velocities**2), velocities

    ((_, ours_out), ours_grad), ((_, theirs_out), theirs_grad) = run(ours), run(stacked(ours))
    np.testing.assert_allclose(theirs_out, ours_out, atol=1e-4 * jnp.abs(ours_out).max())
    assert jnp.abs(ours_out[0] - ours_out[1]).max() > 1e-3
    pairs = list(zip(*map(jax.tree.leaves, (theirs_grad, stacked(ours_grad))), strict=True))
    largest = max(jnp.abs(b).max() for _, b in pairs)
    for a, b in pairs:
        assert jnp.isfinite(a).all()
        assert jnp.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-4 * largest)


def test_normalised_queries_do_not_see_how_large_their_weights_are():
    x = jax.random.normal(jax.random.key(1), (6, 16))

    def mix(factor, **choice):
        attention = Attention(dataclasses.replace(TINY, **choice), key=jax.random.key(0))
        weight = attention.qkv.weight.at[:16].multiply(factor)
        return eqx.tree_at(lambda a: a.qkv.weight, attention, weight)(x)

    assert_matches(mix(30, qk_norm=True), mix(1, qk_norm=True))
    assert jnp.abs(mix(30) - mix(1)).max() > 0.01
    assert_matches(mix(1, logit_scale="inverse-sqrt"), mix(np.sqrt(8)))


def test_rotated_products_are_those_of_complex_numbers_turned_by_the_distance():
    """So they are the same for every pair of tokens that are as far apart."""
    (rows, columns), size = (3, 5), 8
    q, k = jax.random.normal(jax.random.key(0), (2, size))
    each = lambda x: rotate(jnp.broadcast_to(x, (rows * columns, size)), (rows, columns))
    products = (each(q) @ each(k).T).reshape(rows, columns, rows, columns)
    pair = lambda x: np.asarray(x[:4]) + 1j * np.asarray(x[4:])
    frequencies = np.array([1, 0.01])
    for r, c, s, d in np.ndindex(products.shape):
        turn = np.exp(1j * np.concatenate([(s - r) * frequencies, (d - c) * frequencies]))
        expected = (pair(q).conj() * turn * pair(k)).real.sum()
        assert products[r, c, s, d] == pytest.approx(expected, abs=1e-5)
    assert abs(products[0, 0, 1, 0] - products[0, 0, 0, 1]) > 0.01


def test_rotation_needs_heads_of_four_values():
    with pytest.raises(odelt.InputError, match=r"rope needs a head dimension .* of 4; got 6"):
        dataclasses.replace(TINY, hidden_size=24, num_heads=4, rope=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_root_of_the_mean_square_of_a_row_is_its_scale(dtype):
    x = (3 + jax.random.normal(jax.random.key(0), (5, 16))).astype(dtype)
    plain, scaled = Norm("rms", 16)(x), Norm("scaled-rms", 16)
    exact = np.asarray(x, np.float64)
    expected = exact / np.sqrt((exact**2).mean(1, keepdims=True))
    assert plain.dtype == jnp.float32
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    np.testing.assert_array_equal(scaled(x), plain)
    scaled = eqx.tree_at(lambda n: n.scale, scaled, jnp.full(16, 0.5))
    np.testing.assert_allclose(scaled(x), 1.5 * expected, rtol=1e-6)


@pytest.mark.parametrize("width", [128, 192, 384, 768, 1152])
def test_a_swiglu_has_as_many_weights(width):
    count = lambda kind: sum(
        leaf.size
        for leaf in jax.tree.leaves(
            eqx.filter_eval_shape(Mlp, width, 4, 0.0, kind, key=jax.random.key(0))
        )
    )
    assert count("swiglu") == pytest.approx(count("gelu"), rel=0.01)


def test_a_swiglu_is_a_product_of_two_layers():
    mlp = Mlp(6, 4, 0.0, "swiglu", key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 6))
    a, b = np.split(np.asarray(x @ mlp.hidden.weight.T, np.float64), 2, axis=1)
    expected = (a / (1 + np.exp(-a)) * b) @ np.asarray(mlp.out.weight, np.float64).T
    np.testing.assert_allclose(mlp(x, None), expected, rtol=1e-4, atol=1e-5)
    dropping = Mlp(6, 4, 0.5, "swiglu", key=jax.random.key(0))
    assert (dropping(x, jax.random.key(2)) == 0).mean() > 0.3


@pytest.mark.parametrize("told", ["depth", "edge"])
def test_a_shared_modulation_without_offsets_is_one_that_all_blocks_have(told):
    config = dataclasses.replace(TINY, length_embedding=told)
    shared = dataclasses.replace(config, modulation="shared").build(key=jax.random.key(0))
    tied = config.build(key=jax.random.key(0))
    tied = eqx.tree_at(
        lambda m: [b.modulation for b in m.blocks], tied, [shared.modulation for _ in tied.blocks]
    )
    final = jax.random.normal(jax.random.key(1), tied.final.out.weight.shape)
    x, labels = jax.random.normal(jax.random.key(2), (3, *TINY.shape)), jnp.array([0, 5, 10])
    for depth in ("plain", np.array([4, 2, 4])):
        ours, theirs = (
            eqx.tree_at(lambda m: m.final.out.weight, m, final)(0.5, x, 6, labels, depth=depth)
            for m in (shared, tied)
        )
        assert_matches(ours, theirs)
    count = lambda model: sum(leaf.size for leaf in jax.tree.leaves(model))
    assert count(tied) - count(shared) == 3 * 6 * 16 * (16 + 1) - 4 * 6 * 16


HALF = dataclasses.replace(TINY, dtype="bfloat16")
CUDNN = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"


def count_calls(module, target):
    """How often a program calls `target`, counting through its functions."""
    functions = re.split(r"\n  func\.func ", module)[1:]
    bodies = {re.search(r"@([\w.]+)", f)[1]: f for f in functions}

    def count(name):
        inner = re.findall(r"call @([\w.]+)\(", bodies[name])
        own = len(re.findall(rf"@{re.escape(target)}\(", bodies[name]))
        return own + sum(count(other) for other in inner if other in bodies)

    return count("main")


def cuda_program(run, model):
    x = jnp.zeros((3, *model.config.shape))
    arrays, rest = eqx.partition(model, eqx.is_array)
    call = lambda arrays, x: run(eqx.combine(arrays, rest), x)
    return jax.jit(call).trace(arrays, x).lower(lowering_platforms=("cuda",)).as_text()


def velocity(model, x):
    return model(0.5, x, 6, jnp.array([0, 5, 10]))


@pytest.mark.thorough
@pytest.mark.parametrize("choice", [{}, {**ALL, "stacked": False}], ids=["default", "all"])
def test_on_a_gpu_every_block_is_one_fused_attention(monkeypatch, choice):
    """The version that JAX asks for here is not installed on every machine."""
    monkeypatch.setattr(CUDNN, lambda: 92800)
    jax.clear_caches()  # of blocks that were traced without it
    model = dataclasses.replace(HALF, **choice).build(key=jax.random.key(0))
    forward = cuda_program(velocity, model)
    gradient = cuda_program(
        lambda model, x: jax.grad(lambda x: jnp.mean(velocity(model, x) ** 2))(x), model
    )
    for program in (forward, gradient):
        assert count_calls(program, "__cudnn$fmhaSoftmax") == 4
        assert "f64" not in program
        assert "callback" not in program
    assert count_calls(gradient, "__cudnn$fmhaSoftmaxBackward") == 4
    explicit = dataclasses.replace(HALF, attention="xla").build(key=jax.random.key(0))
    for other in (explicit, TINY.build(key=jax.random.key(0))):  # of bfloat16 and of float32
        assert "cudnn" not in cuda_program(velocity, other)


@pytest.mark.thorough
def test_elsewhere_the_same_network_computes_its_attention_by_xla(monkeypatch):
    x = jax.random.normal(jax.random.key(2), (3, *TINY.shape))
    model = randomised(HALF.build(key=jax.random.key(0)))
    monkeypatch.setattr(CUDNN, lambda: 92800)
    known = eqx.filter_jit(velocity)(model, x)
    jax.clear_caches()

    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(CUDNN, missing)
    np.testing.assert_array_equal(eqx.filter_jit(lambda *a: velocity(*a))(model, x), known)
    forced = dataclasses.replace(HALF, attention="cudnn").build(key=jax.random.key(0))
    with pytest.raises(odelt.InputError, match=r"attention cudnn: cuDNN is not detected\. Give"):
        velocity(forced, x)
    with pytest.raises(odelt.InputError, match="attention cudnn needs dtype bfloat16; got float32"):
        dataclasses.replace(TINY, attention="cudnn")
