"""The optimizer, its learning rate, and the decay of the average of the weights."""

import jax.numpy as jnp
import optax

from odelt_eqx.config import OptimizerConfig
from odelt_eqx.training.step import Decay

FORGOTTEN = 1e-3
"""Share of the first weights in an average that is as good as none."""


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


def ema_decay(config: OptimizerConfig, steps: int, averaged: bool = False) -> Decay:
    """Return the decay of the EMA as a function of the steps taken, for a run of `steps` steps.

    In a short run with `ema_warmup` the average is over about the last tenth of the steps taken,
    until that is `1 / (1 - ema)` steps. A run that begins with an average (`averaged`) keeps it.

    Source: the rule is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    ema = config.ema
    if ema**steps < FORGOTTEN or averaged or not config.ema_warmup:
        return lambda step: ema
    return lambda step: jnp.minimum((1.0 + step) / (10.0 + step), ema)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return AdamW with the schedule of a run of `steps` steps, after clipping if asked for."""
    adamw = optax.adamw(
        learning_rate(config, steps), config.beta1, config.beta2, weight_decay=config.weight_decay
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
