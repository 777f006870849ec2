"""Noise to images: the time ODE put to use."""

from functools import partial
from typing import Literal, NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from odelt_eqx.errors import InputError, SolveError
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.ode.plan import Adaptive, FixedSteps, Plan, traced
from odelt_eqx.ode.time import integrate_time

Depth = int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None


class SampleStats(NamedTuple):
    """What a batch of samples cost.

    Attributes:
        steps: time steps taken, rejected ones included.
        evaluations: network evaluations for each picture; a guided one counts twice.
    """

    steps: int
    evaluations: int


def sample(
    model: DiT,
    noise: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    *,
    time: Plan = FixedSteps(),
    length: Plan = FixedSteps(),
    depth: Depth | Literal["full"] = "full",
    guidance: float = 1.0,
) -> Float[Array, "batch height width channels"]:
    """Carry noise to images along the model's velocity, one compiled program for any step count.

    Args:
        model: the network.
        noise: standard normal draws, (batch, height, width, channels), float32.
        labels: the classes asked for; the config's `null_label` for none.
        time: how the time ODE is solved over [0, 1].
        length: how each group's unit of length is solved.
        depth: blocks to run, one of `model.config.depths`, for all or one per picture; None for
            the plain DiT.
        guidance: classifier-free guidance weight; 1 runs the labels alone, 0 no label.

    Returns:
        Images at t = 1, not clipped.

    Raises:
        InputError: a shape, a label, the depth or a plan does not fit the model.
        SolveError: an adaptive plan ran out of steps.
    """
    return _final(_sample(model, noise, labels, time, length, depth, guidance))


def sample_with_stats(
    model: DiT,
    noise: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    *,
    time: Plan = FixedSteps(),
    length: Plan = FixedSteps(),
    depth: Depth | Literal["full"] = "full",
    guidance: float = 1.0,
) -> tuple[Float[Array, "batch height width channels"], SampleStats]:
    """Do what `sample` does, wait for the result and count the cost."""
    solution = _sample(model, noise, labels, time, length, depth, guidance)
    steps = int(solution.stats["num_steps"])
    halves = 1 if guidance in (0, 1) else 2
    return _final(solution), SampleStats(steps, halves * time.evaluations(steps))


def _sample(
    model: DiT,
    noise: Array,
    labels: Array,
    time: Plan,
    length: Plan,
    depth: Depth | Literal["full"],
    guidance: float,
) -> diffrax.Solution:
    """Check, solve, and raise in plain words what went wrong."""
    config = model.config
    _check(config, noise, labels)
    depth = config.depth if isinstance(depth, str) else depth
    if not isinstance(depth, Tracer):
        config.check_depth(None if depth is None else np.asarray(depth))
    weight = guidance if guidance in (0, 1) else jnp.asarray(guidance, jnp.float32)
    length = traced(length) if isinstance(length, Adaptive) else length
    try:
        solution = _solve(model, noise, labels, traced(time), length, depth, weight)
    except eqx.EquinoxRuntimeError as error:
        if isinstance(length, Adaptive) and length.failure("length") in str(error):
            raise SolveError(length.failure("length")) from None
        raise
    if isinstance(time, Adaptive):
        failed = solution.result != diffrax.RESULTS.successful
        if isinstance(failed, Tracer):
            return eqx.error_if(solution, failed, time.failure("time"))
        if failed:
            raise SolveError(time.failure("time"))
    return solution


@eqx.filter_jit
def _solve(
    model: DiT,
    noise: Array,
    labels: Array,
    time: Plan,
    length: Plan,
    depth: Depth,
    guidance: float | Array,
) -> diffrax.Solution:
    return integrate_time(
        partial(model, depth=depth, length=length),
        noise,
        labels,
        time,
        flow_index=model.config.flow_index,
        null_label=model.config.null_label,
        guidance=guidance,
    )


def _final(solution: diffrax.Solution) -> Array:
    """Return the state at t = 1."""
    return solution.ys[-1]  # pyright: ignore[reportOptionalSubscript]


def _check(config: DiTConfig, noise: Array, labels: Array) -> None:
    if noise.ndim != 4 or noise.shape[1:] != config.image_shape:
        height, width, channels = config.image_shape
        raise InputError(
            f"noise must have shape (batch, {height}, {width}, {channels}); got {noise.shape}"
        )
    if labels.shape != noise.shape[:1]:
        raise InputError(f"labels must have shape {noise.shape[:1]}; got {labels.shape}")
    if isinstance(labels, Tracer):
        return
    wrong = [label for label in np.asarray(labels).tolist() if not 0 <= label <= config.null_label]
    if wrong:
        raise InputError(
            f"labels must lie between 0 and {config.num_classes - 1}, or be "
            f"{config.null_label} for none; got {wrong[0]}"
        )
