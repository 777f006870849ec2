"""Operations of one velocity, from the shape of the network alone."""

import math
from typing import Literal

from odelt_eqx.inputs import check_depth
from odelt_eqx.nn.config import NetworkConfig
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.nn.embeddings import FREQUENCIES
from odelt_eqx.nn.layers import mlp_width
from odelt_eqx.ode.plan import FixedSteps


def velocity_flops(config: NetworkConfig, depth: int | Literal["full", "plain"]) -> int:
    """Return the floating-point operations of one velocity of one example.

    Only matrix products count, two operations (a product and a sum) for each multiplication, as
    hardware utilization is usually stated; elementwise operations, a few percent at the published
    widths, do not. A gradient takes about twice as many on top. An adaptive length plan counts as
    one step per group, the minimum. An InputError if the network does not have that depth.
    """
    width, shared = config.hidden_size, 0
    if isinstance(config, DiTConfig):
        tokens = math.prod(config.grid)
        values = config.patch_size**2 * config.channels
        matrices = 2 if config.mlp == "gelu" else 3
        mlp = matrices * mlp_width(width, config.mlp_ratio, config.mlp)
        block = 2 * tokens * width * (4 * width + 2 * tokens + mlp)
        if config.modulation == "block":
            block += 12 * width**2
        else:
            shared = 12 * width**2 * _block_conditions(config, depth)
    else:
        tokens, values = 1, config.shape[0]
        block = 6 * width**2 + 4 * config.mlp_ratio * width**2
    condition = 4 * width * (FREQUENCIES + width) + 2 * width * (config.condition_size or 0)
    ends = 4 * tokens * values * width + 4 * width**2
    return condition + shared + ends + _block_evaluations(config, depth) * block


def _block_conditions(config: NetworkConfig, depth: int | Literal["full", "plain"]) -> int:
    """Return how many conditions of blocks there are: one for all, or one for each group."""
    if config.length_embedding != "edge" or depth == "plain":
        return 1
    return (config.depth if isinstance(depth, str) else depth) // config.depth_group


def _block_evaluations(config: NetworkConfig, depth: int | Literal["full", "plain"]) -> int:
    """Return how many blocks are evaluated for one velocity."""
    blocks = check_depth(config.depth if depth == "full" else depth, config.depths)
    if blocks == "plain":
        return config.depth
    plan, group = config.length, config.depth_group
    steps = int(plan.count) if isinstance(plan, FixedSteps) else 1
    return blocks // group * group * int(plan.evaluations(steps))
