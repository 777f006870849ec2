"""What one velocity takes, from the shape of the network alone."""

from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.nn.embeddings import FREQUENCIES
from odelt_eqx.ode.plan import FixedSteps


def velocity_flops(config: DiTConfig, depth: int | None) -> int:
    """Return the floating-point operations of one velocity of one image.

    Matrix products alone, two operations (a product and a sum) for each multiplication, as the
    utilisation of hardware is usually stated: what is done element by element is left out, some
    percent at the published widths. A gradient takes about twice as many on top.

    Args:
        config: shape of the network.
        depth: blocks to run; None for the plain DiT.

    Returns:
        The count. Where the length plan is adaptive it is that of a single step in each group: the
        steps are not known beforehand, and that is the least.

    Raises:
        InputError: the network has not that depth.
    """
    config.check_depth(depth)
    width, tokens = config.hidden_size, (config.image_size // config.patch_size) ** 2
    values = config.patch_size**2 * config.channels
    attention = 2 * tokens * width * (4 * width + 2 * tokens)
    mlp = 4 * tokens * config.mlp_ratio * width**2
    block = 12 * width**2 + attention + mlp
    condition = 2 * 2 * width * (FREQUENCIES + width)
    ends = 2 * 2 * tokens * values * width + 4 * width**2
    return condition + ends + _block_evaluations(config, depth) * block


def _block_evaluations(config: DiTConfig, depth: int | None) -> int:
    """Return how many blocks are evaluated for one velocity."""
    if depth is None:
        return config.depth
    plan, group = config.length, config.depth_group
    steps = int(plan.count) if isinstance(plan, FixedSteps) else 1
    return depth // group * group * int(plan.evaluations(steps))
