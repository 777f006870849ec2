"""How a model is run: the options that every sampler takes, checked once."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from odelt_eqx.errors import InputError, SolveError
from odelt_eqx.nn.dit import DiT, DiTConfig
from odelt_eqx.ode.cost import Cost
from odelt_eqx.ode.plan import Adaptive, FixedSteps, Plan, traced, undifferentiated
from odelt_eqx.ode.time import SolveStats, guided_with_cost

BFLOAT16_TOLERANCE = 1e-3
"""Below about this, the rounding of a bfloat16 field looks like error to an adaptive solver."""

Depth = int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | Literal["full"] | None

Tree = TypeVar("Tree")


class Options(TypedDict, total=False):
    """How a model is run; each may be left out.

    Attributes:
        time: how the time ODE is solved over [0, 1]; one Euler step.
        length: how each group's unit of length is solved; None as the model's config says.
        depth: blocks to run, one of `model.config.depths`, for all or one per picture; "full" for
            all there are; None for the plain DiT.
        guidance: classifier-free guidance weight; 1 runs the labels alone, 0 no label.
        exit_tolerance: a picture's network evaluation stops at the first edge of the length where
            the last group changed `u` by less than this share of it; None runs to `depth`.
    """

    time: Plan
    length: Plan | None
    depth: Depth
    guidance: float
    exit_tolerance: float | None


class Setting(eqx.Module):
    """Options that fit a model, in the form that is compiled: what may change freely is an array.

    Args:
        time: as in `Options`.
        length: as in `Options`.
        depth: as in `Options`, "full" replaced by the number.
        guidance: a Python number if it is 0 or 1.
        exit_tolerance: as in `Options`.
    """

    time: Plan
    length: Plan
    depth: int | Int[np.ndarray, " batch"] | Int[Array, " batch"] | None
    guidance: float | Float[Array, ""]
    exit_tolerance: Float[Array, ""] | None

    def field(self, model: DiT, labels: Int[Array, " batch"], depth: Any) -> Callable[..., Any]:
        """Return `(t, x, step_index) -> (velocity, cost)` under this setting."""
        velocity = partial(
            model.with_cost, depth=depth, length=self.length, exit_tolerance=self.exit_tolerance
        )

        def field(t: Array, x: Array, step_index: Array) -> tuple[Array, Cost]:
            null = model.config.null_label
            return guided_with_cost(velocity, t, x, step_index, labels, null, self.guidance)

        return field


def setting(
    model: DiT,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    options: Options,
) -> Setting:
    """Return the setting that `options` ask for, with the defaults of `Options`.

    Raises:
        InputError: a shape, a label, the depth or the tolerance does not fit the model.
    """
    config = model.config
    _check(config, images, labels)
    time = options.get("time", FixedSteps())
    length = options.get("length") or config.length
    depth = options.get("depth", "full")
    depth = config.depth if isinstance(depth, str) else depth
    if not isinstance(depth, Tracer):
        config.check_depth(None if depth is None else np.asarray(depth))
    tolerance = options.get("exit_tolerance")
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"exit_tolerance must be positive; got {tolerance}")
    guidance = options.get("guidance", 1.0)
    _warn_of_precision(config, time=time, length=length)
    return Setting(
        time=traced(time),
        length=traced(length) if isinstance(length, Adaptive) else undifferentiated(length),
        depth=depth,
        guidance=guidance if guidance in (0, 1) else jnp.asarray(guidance, jnp.float32),
        exit_tolerance=None if tolerance is None else jnp.asarray(tolerance, jnp.float32),
    )


def raise_failures(result: Tree, stats: SolveStats, time: Plan, length: Plan) -> Tree:
    """Return `result`, or raise a SolveError that names the examples whose solve failed."""
    axes = (("time", time, stats.time_failed), ("length", length, stats.length_failed))
    for axis, plan, failed in axes:
        if not isinstance(plan, Adaptive):
            continue
        if isinstance(failed, Tracer):
            result = eqx.error_if(result, failed, plan.failure(axis))
            continue
        which = np.flatnonzero(failed)
        if len(which):
            named = ", ".join(map(str, which[:10])) + (", ..." if len(which) > 10 else "")
            whose = f" for {len(which)} of {len(failed)} examples (index {named})"
            raise SolveError(plan.failure(axis, whose))
    return result


def _warn_of_precision(config: DiTConfig, **plans: Plan) -> None:
    """Warn of tolerances that the rounding of a bfloat16 network does not let a solver meet."""
    if config.dtype != "bfloat16":
        return
    for axis, plan in plans.items():
        if isinstance(plan, Adaptive) and min(plan.rtol, plan.atol) < BFLOAT16_TOLERANCE:
            warnings.warn(
                f"a bfloat16 network cannot meet {axis}.rtol {plan.rtol:g} and {axis}.atol "
                f"{plan.atol:g}: steps are wasted; use {BFLOAT16_TOLERANCE:g} or more",
                stacklevel=5,
            )


def _check(config: DiTConfig, images: Array, labels: Array) -> None:
    if images.ndim != 4 or images.shape[1:] != config.image_shape:
        height, width, channels = config.image_shape
        wanted = f"(batch, {height}, {width}, {channels})"
        raise InputError(f"noise and images must have shape {wanted}; got {images.shape}")
    if labels.shape != images.shape[:1]:
        raise InputError(f"labels must have shape {images.shape[:1]}; got {labels.shape}")
    if isinstance(labels, Tracer):
        return
    wrong = [label for label in np.asarray(labels).tolist() if not 0 <= label <= config.null_label]
    if wrong:
        raise InputError(
            f"labels must lie between 0 and {config.num_classes - 1}, or be "
            f"{config.null_label} for none; got {wrong[0]}"
        )
