"""The optimizer and its learning rate."""

import optax

from odelt_eqx.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step, for a run of `steps` steps.

    It rises over at most a tenth of the run: otherwise a short one would never reach it.
    """
    rise, warmup = optax.constant_schedule(config.learning_rate), min(config.warmup, steps // 10)
    if warmup:  # over zero steps, optax's warm-up would stay at zero
        rise = optax.warmup_constant_schedule(0.0, config.learning_rate, warmup)
    fall = max(steps // 10, 1)
    return optax.join_schedules(
        [rise, optax.cosine_decay_schedule(config.learning_rate, fall)], [steps - fall]
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return AdamW with the schedule of a run of `steps` steps, after clipping if asked for."""
    adamw = optax.adamw(
        learning_rate(config, steps), config.beta1, config.beta2, weight_decay=config.weight_decay
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
