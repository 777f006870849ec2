"""Noise to images: the time ODE put to use."""

import warnings
from collections.abc import Sequence
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

BFLOAT16_TOLERANCE = 1e-3
"""Below about this, the rounding of a bfloat16 field looks like error to an adaptive solver."""

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


def trajectory(
    model: DiT,
    noise: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    at: Sequence[float],
    *,
    time: Plan = FixedSteps(),
    length: Plan = FixedSteps(),
    depth: Depth | Literal["full"] = "full",
    guidance: float = 1.0,
) -> Float[Array, "times batch height width channels"]:
    """Return the states on the way from noise to images, at the times asked for.

    Between the steps of the solver they are interpolated as the solver does.

    Args:
        model: the network.
        noise: as for `sample`, and so are the arguments not named here.
        labels: the classes asked for.
        at: rising times in [0, 1].
        time: how the time ODE is solved.
        length: how each group's unit of length is solved.
        depth: blocks to run.
        guidance: classifier-free guidance weight.

    Raises:
        InputError: the times do not rise within [0, 1], or as for `sample`.
        SolveError: an adaptive plan ran out of steps.
    """
    times = np.asarray(at, np.float32)
    if not len(times) or times[0] < 0 or times[-1] > 1 or (np.diff(times) <= 0).any():
        raise InputError(f"at must hold rising times in [0, 1]; got {tuple(at)}")
    solution = _sample(model, noise, labels, time, length, depth, guidance, at=jnp.asarray(times))
    return solution.ys  # pyright: ignore[reportReturnType]


def invert(
    model: DiT,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    *,
    time: Plan = FixedSteps(),
    length: Plan = FixedSteps(),
    depth: Depth | Literal["full"] = "full",
    guidance: float = 1.0,
) -> Float[Array, "batch height width channels"]:
    """Carry images back to the noise they come from: the time ODE from t = 1 to t = 0.

    `sample` with the same arguments brings the images back, up to the error of both solves.

    Args:
        model: the network.
        images: data, in [-1, 1].
        labels: their classes; the other arguments are those of `sample`.
        time: how the time ODE is solved.
        length: how each group's unit of length is solved.
        depth: blocks to run.
        guidance: classifier-free guidance weight.

    Raises:
        InputError: as for `sample`.
        SolveError: an adaptive plan ran out of steps.
    """
    return _final(_sample(model, images, labels, time, length, depth, guidance, backwards=True))


def _sample(
    model: DiT,
    start: Array,
    labels: Array,
    time: Plan,
    length: Plan,
    depth: Depth | Literal["full"],
    guidance: float,
    *,
    backwards: bool = False,
    at: Array | None = None,
) -> diffrax.Solution:
    """Check, solve, and raise in plain words what went wrong."""
    config = model.config
    _check(config, start, labels)
    depth = config.depth if isinstance(depth, str) else depth
    if not isinstance(depth, Tracer):
        config.check_depth(None if depth is None else np.asarray(depth))
    _warn_of_precision(config, time=time, length=length)
    weight = guidance if guidance in (0, 1) else jnp.asarray(guidance, jnp.float32)
    length = traced(length) if isinstance(length, Adaptive) else length
    try:
        solution = _solve(model, start, labels, traced(time), length, depth, weight, backwards, at)
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
    start: Array,
    labels: Array,
    time: Plan,
    length: Plan,
    depth: Depth,
    guidance: float | Array,
    backwards: bool,
    at: Array | None,
) -> diffrax.Solution:
    return integrate_time(
        partial(model, depth=depth, length=length),
        start,
        labels,
        time,
        flow_index=model.config.flow_index,
        null_label=model.config.null_label,
        guidance=guidance,
        backwards=backwards,
        at=at,
    )


def _warn_of_precision(config: DiTConfig, **plans: Plan) -> None:
    """Warn of tolerances that the rounding of a bfloat16 network does not let a solver meet."""
    if config.dtype != "bfloat16":
        return
    for axis, plan in plans.items():
        if isinstance(plan, Adaptive) and min(plan.rtol, plan.atol) < BFLOAT16_TOLERANCE:
            warnings.warn(
                f"a bfloat16 network cannot meet {axis}.rtol {plan.rtol:g} and {axis}.atol "
                f"{plan.atol:g}: steps are wasted; use {BFLOAT16_TOLERANCE:g} or more",
                stacklevel=4,
            )


def _final(solution: diffrax.Solution) -> Array:
    """Return the state at t = 1."""
    return solution.ys[-1]  # pyright: ignore[reportOptionalSubscript]


def _check(config: DiTConfig, start: Array, labels: Array) -> None:
    if start.ndim != 4 or start.shape[1:] != config.image_shape:
        height, width, channels = config.image_shape
        wanted = f"(batch, {height}, {width}, {channels})"
        raise InputError(f"noise and images must have shape {wanted}; got {start.shape}")
    if labels.shape != start.shape[:1]:
        raise InputError(f"labels must have shape {start.shape[:1]}; got {labels.shape}")
    if isinstance(labels, Tracer):
        return
    wrong = [label for label in np.asarray(labels).tolist() if not 0 <= label <= config.null_label]
    if wrong:
        raise InputError(
            f"labels must lie between 0 and {config.num_classes - 1}, or be "
            f"{config.null_label} for none; got {wrong[0]}"
        )
