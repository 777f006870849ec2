"""The count of operations against that of the compiler."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn.flops import velocity_flops

WIDE = odelt.DiTConfig(
    image_size=16,
    channels=4,
    patch_size=2,
    hidden_size=256,
    num_heads=4,
    mlp_ratio=4,
    depth=7,
    depth_min=3,
    depth_group=2,
    num_classes=10,
)


@pytest.mark.parametrize("depth", [3, 5, 7, None])
def test_the_compiler_counts_as_many(depth):
    """It adds what is done element by element, 1 % at this width."""
    model = eqx.filter_eval_shape(odelt.DiT, WIDE, key=jax.random.key(0))
    inputs = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((2,), jnp.float32), ((2, 16, 16, 4), jnp.float32), ((2,), jnp.int32))
    ]
    run = jax.jit(lambda model, t, x, labels: model(t, x, 5, labels, depth=depth))
    analysis = run.lower(model, *inputs).compile().cost_analysis()
    assert isinstance(analysis, dict)
    ours = velocity_flops(WIDE, depth)
    assert ours < analysis["flops"] / 2 < 1.02 * ours


def test_the_published_network_takes_what_was_published():
    """DiT-B/2 at 256 pixels: 23 billion multiplications (arXiv 2212.09748, table 4)."""
    published = {"image_size": 32, "hidden_size": 768, "num_heads": 12, "num_classes": 1000}
    depths = {"depth": 12, "depth_min": 4, "depth_group": 4}
    config = dataclasses.replace(WIDE, **published, **depths)
    assert velocity_flops(config, None) / 2 == pytest.approx(23.01e9, rel=2e-3)


def test_every_evaluation_of_a_block_counts():
    def blocks(length):
        config = dataclasses.replace(WIDE, length=length)
        return velocity_flops(config, 7) - velocity_flops(config, 5)

    euler = blocks(odelt.FixedSteps())
    assert blocks(odelt.FixedSteps(3, "heun")) == 6 * euler
    assert blocks(odelt.Adaptive(solver="dopri5")) == 7 * euler
    with pytest.raises(odelt.InputError, match="depth must be one of 3, 5, 7"):
        velocity_flops(WIDE, 4)
