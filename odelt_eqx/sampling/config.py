"""How a network is run: one declaration for Python, the command line, a run and the grid."""

import dataclasses
import warnings
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from odelt_eqx.errors import InputError, SolveError, find_by_name
from odelt_eqx.network import (
    Classes,
    Condition,
    Network,
    check_batch,
    check_depth,
    check_guidance,
)
from odelt_eqx.ode.plan import (
    Adaptive,
    FixedSteps,
    Plan,
    as_arrays,
    with_known_steps,
    without_recomputing,
)

BFLOAT16_TOLERANCE = 1e-3
"""Below about this, the rounding of a bfloat16 field looks like error to an adaptive solver."""

Tree = TypeVar("Tree")


class SampleConfig(eqx.Module):
    """How a network is run.

    Args:
        time: how the time ODE is solved over [0, 1]; one Euler step by default.
        length: how each group's unit of length is solved; None as the network says.
        depth: blocks to run, one of the network's depths; "full" for all, "plain" for the network
            without a length ODE. In Python also an array with the depth of each example.
        guidance: classifier-free guidance weight; 1 runs the condition alone, 0 the null condition
            alone. In Python also an array with the weight of each example.
        guidance_interval: guidance acts from the first time until before the second (arXiv
            2404.07724), and the condition alone is evaluated at other times; None for all times.
            Examples with adaptive steps of their own compute both halves at all times.
        exit_tolerance: a network evaluation of an example stops at the first edge of the length
            where the last group changed `u` by less than this share of it; None runs to `depth`.
        as_published: ask the network for the reference's step index, `floor(log2 steps)` under
            every solver and 0 in adaptive solves, instead of the flow field or, in a step of
            Euler's, the mean velocity over that step.

    Raises:
        InputError: `exit_tolerance` is not positive, or `guidance_interval` is not two rising
            times in [0, 1].
    """

    time: FixedSteps | Adaptive = FixedSteps()
    length: FixedSteps | Adaptive | None = None
    depth: int | Literal["full", "plain"] = "full"
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    exit_tolerance: float | None = None
    as_published: bool = False

    def __check_init__(self) -> None:
        _check_values(vars(self))


def resolve(
    network: Network,
    x: Float[Array, "batch *shape"],
    condition: Condition | None,
    config: SampleConfig,
    options: dict[str, Any],
    traced: bool = False,
) -> SampleConfig:
    """Return how a call runs the network, in the form that is compiled.

    What may change without compiling is an array: step counts, tolerances, an interval, and a
    guidance that is neither 0 nor 1. "full" and a length of None are replaced by the network's own.
    `options` are fields of `config` that a caller replaces. In a call that is `traced`, which may
    be differentiated, counts stay numbers and both plans keep their adjoint.

    Raises:
        InputError: an option is unknown, or a shape, a label or the depth does not fit the network.
    """
    _check_options(options)
    chosen = vars(config) | options
    guidance, tolerance = chosen["guidance"], chosen["exit_tolerance"]
    interval = None if _is(guidance, 1) else chosen["guidance_interval"]
    check_batch(network, x, condition)
    _check_labels(network, condition)
    guided = isinstance(guidance, Tracer) or np.ndim(guidance) > 0 or guidance not in (0, 1)
    check_guidance(network.condition_type, guidance)
    if np.ndim(guidance) and np.shape(guidance) != x.shape[:1]:
        raise InputError(f"guidance must be a number or have shape {x.shape[:1]}; got {guidance}")
    depth = network.depth if _is(chosen["depth"], "full") else chosen["depth"]
    length = network.length if chosen["length"] is None else chosen["length"]
    _warn_of_precision(network, time=chosen["time"], length=length)
    if not traced and isinstance(length, FixedSteps):
        length = without_recomputing(length)
    return _replace(
        config,
        time=with_known_steps(chosen["time"]) if traced else as_arrays(chosen["time"]),
        length=length if isinstance(length, FixedSteps) else as_arrays(length),
        depth=check_depth(depth, network.depths),
        as_published=chosen["as_published"],
        guidance=jnp.asarray(guidance, jnp.float32) if guided else float(guidance),
        guidance_interval=None if interval is None else tuple(map(jnp.float32, interval)),
        exit_tolerance=None if tolerance is None else jnp.asarray(tolerance, jnp.float32),
    )


def raise_failures(
    result: Tree,
    network: Network,
    config: SampleConfig,
    time_failed: Bool[Array | np.ndarray, " batch"],
    length_failed: Bool[Array | np.ndarray, " batch"],
) -> Tree:
    """Return `result`, or raise a SolveError that names the examples whose solve failed."""
    length = network.length if config.length is None else config.length
    axes = [("time", config.time, time_failed), ("length", length, length_failed)]
    for axis, plan, failed in axes:
        if not isinstance(plan, Adaptive):
            continue
        if isinstance(failed, Tracer):
            result = eqx.error_if(result, failed, plan.failure(axis))
            continue
        indices = np.flatnonzero(failed)
        if len(indices):
            listed = ", ".join(map(str, indices[:10])) + (", ..." if len(indices) > 10 else "")
            which = f" for {len(indices)} of {len(failed)} examples (index {listed})"
            raise SolveError(plan.failure(axis, which))
    return result


def _replace(config: SampleConfig, **values: Any) -> SampleConfig:
    """Return `config` with other values, of any type: arrays for numbers."""
    fields = lambda config: [getattr(config, name) for name in values]
    return eqx.tree_at(fields, config, list(values.values()), is_leaf=lambda x: x is None)


def _is(value: Any, constant: str | int) -> bool:
    """Whether a value is this string or number; an array is not compared."""
    return np.ndim(value) == 0 and not isinstance(value, Array | Tracer) and value == constant


def _check_options(options: dict[str, Any]) -> None:
    names = [field.name for field in dataclasses.fields(SampleConfig)]
    for name in options:
        find_by_name("sampling option", name, dict.fromkeys(names, True))
    _check_values(options)


def _check_values(options: dict[str, Any]) -> None:
    tolerance, interval = options.get("exit_tolerance"), options.get("guidance_interval")
    if tolerance is not None and not isinstance(tolerance, Tracer) and not tolerance > 0:
        raise InputError(f"exit_tolerance must be positive; got {tolerance}")
    if interval is None or any(isinstance(time, Tracer) for time in interval):
        return
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise InputError(
            f"guidance_interval must be two rising times in [0, 1]; got {tuple(interval)}"
        )


def _check_labels(network: Network, condition: Condition | None) -> None:
    """Raise an InputError unless labels are those of classes, or the null label."""
    kind = network.condition_type
    if not isinstance(kind, Classes) or condition is None or isinstance(condition, Tracer):
        return
    wrong = [label for label in np.asarray(condition).tolist() if not 0 <= label <= kind.count]
    if wrong:
        raise InputError(
            f"labels must lie between 0 and {kind.count - 1}, or be {kind.count} for none; "
            f"got {wrong[0]}"
        )


def _warn_of_precision(network: Network, **plans: Plan) -> None:
    """Warn of tolerances that the rounding of a bfloat16 network does not let a solver meet."""
    config = getattr(network, "config", None)
    if getattr(config, "dtype", "float32") != "bfloat16":
        return
    for axis, plan in plans.items():
        if isinstance(plan, Adaptive) and min(plan.rtol, plan.atol) < BFLOAT16_TOLERANCE:
            warnings.warn(
                f"a bfloat16 network cannot meet {axis}.rtol {plan.rtol:g} and {axis}.atol "
                f"{plan.atol:g}: steps are wasted; use {BFLOAT16_TOLERANCE:g} or more",
                stacklevel=5,
            )
