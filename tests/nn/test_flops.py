"""The count of operations against the compiler's."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.nn.groups import network_template

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
MODERN = dataclasses.replace(WIDE, mlp="swiglu", modulation="shared", length_embedding="edge")
VECTORS = odelt.VectorNetConfig(
    size=30, hidden_size=256, depth=5, depth_min=3, depth_group=2, condition_size=40
)


@pytest.mark.parametrize(
    ("config", "depth"),
    [
        (WIDE, 3),
        (WIDE, 5),
        (WIDE, 7),
        (WIDE, "plain"),
        (MODERN, 5),
        (VECTORS, 5),
        (VECTORS, "plain"),
    ],
)
def test_the_compiler_counts_as_many(config, depth):
    """It adds elementwise operations, 1 % at this width."""
    model = network_template(config)
    struct = jax.ShapeDtypeStruct
    t, x = struct((2,), jnp.float32), struct((2, *config.shape), jnp.float32)
    condition = struct((2,), jnp.int32) if config.num_classes else struct((2, 40), jnp.float32)
    run = jax.jit(lambda model, t, x, condition: model(t, x, 5, condition, depth=depth))
    analysis = run.lower(model, t, x, condition).compile().cost_analysis()
    assert isinstance(analysis, dict)
    ours = velocity_flops(config, depth)
    assert ours < analysis["flops"] / 2 < 1.02 * ours


def test_the_published_network_takes_what_was_published():
    """DiT-B/2 at 256 pixels: 23 billion multiplications (arXiv 2212.09748, table 4)."""
    published = {"image_size": 32, "hidden_size": 768, "num_heads": 12, "num_classes": 1000}
    depths = {"depth": 12, "depth_min": 4, "depth_group": 4}
    config = dataclasses.replace(WIDE, **published, **depths)
    assert velocity_flops(config, "plain") / 2 == pytest.approx(23.01e9, rel=2e-3)


def test_every_evaluation_of_a_block_counts():
    def blocks(length):
        config = dataclasses.replace(WIDE, length=length)
        return velocity_flops(config, 7) - velocity_flops(config, 5)

    euler = blocks(odelt.FixedSteps())
    assert blocks(odelt.FixedSteps(3, "heun")) == 6 * euler
    assert blocks(odelt.Adaptive(solver="dopri5")) == 7 * euler
    with pytest.raises(odelt.InputError, match="depth must be one of 3, 5, 7"):
        velocity_flops(WIDE, 4)
