"""How a network is run: one declaration for Python, the command line, a run and the grid."""

import dataclasses
import warnings
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key

from odelt_eqx.condition import (
    ConditionType,
    check_guidance,
    is_told_guidance,
)
from odelt_eqx.errors import InputError, SolveError, check_numbers, find_by_name
from odelt_eqx.inputs import check_depth, check_tolerance, is_real, one_per_example
from odelt_eqx.network import Network
from odelt_eqx.ode.plan import (
    STOCHASTIC,
    Adaptive,
    FixedSteps,
    Plan,
    as_array,
    as_arrays,
    with_known_steps,
    without_recomputing,
)

BFLOAT16_TOLERANCE = 1e-3
"""Below about this, the rounding of a bfloat16 field looks like error to an adaptive solver."""

STEP_SOLVERS = ("euler", "ab2", "ab3")
"""The solvers that evaluate the field once a step, where it starts."""

KeyLike = Key[Array, "*#batch"] | None
"""Decides the noise on the way: one key for a batch, or a key for each example."""

Tree = TypeVar("Tree")


class SampleConfig(eqx.Module):
    """How a network is run.

    Args:
        time: how the time ODE is solved over [0, 1]; one Euler step by default.
        length: how each group's unit of length is solved; None as the network says.
        depth: blocks to run, one of the network's depths; "full" for all, "plain" for the network
            without a length ODE; or the depth of every time step, for Euler's steps or those of a
            multistep solver. In Python also an array with the depth of each example.
        depth_tolerance: a network evaluation of an example stops at the first of the network's
            depths, the second or later, where the velocity changed by less than this share of it;
            None runs to `depth`. It needs a network that is not told its depth beforehand.
        guidance: classifier-free guidance weight; 1 runs the condition alone, 0 the null condition
            alone, any other both, unless the network was trained to be told the weight. In Python
            also an array with the weight of each example.
        guidance_interval: guidance acts from the first time until before the second (arXiv
            2404.07724), and the condition alone is evaluated at other times; None for all times.
            Examples with adaptive steps of their own compute both halves at all times.
        depth_guidance: weight `w` of guidance by depth, `v_L + w (v_L - v_l)`; 0 for none. It costs
            nothing where one integration gives both velocities, see `guided_velocity`. In Python
            also an array with the weight of each example.
        guide_depth: the depth `l` of the guide; None for the network's smallest, which has no guide
            itself.
        depth_guidance_interval: times between which guidance by depth acts; None for all times.
        diffusion: strength `s` of noise that is added on the way and taken away by the score,
            which leaves the distribution at every time what it is: the SDE
            `dx = (v - s / 2 (x - t v)) dt + sqrt(s (1 - t)) dW`, for networks that learned the flow
            field of straight paths from normal noise that is independent of the data: without a
            coupling, contrast or width (`sigma`). 0 integrates the ODE; `s` of 1 is SiT's choice
            (arXiv 2401.08740, the coefficient "sigma"). It takes fixed steps of "euler" or "heun",
            and a key.
        as_published: ask the network for the reference's step index, `floor(log2 steps)` under
            every solver and 0 in adaptive solves, instead of the flow field or, in a step of
            Euler's, the mean velocity over that step.

    Raises:
        InputError: a number is not finite, a depth or `depth_tolerance` is not positive, or an
            interval is not two rising times in [0, 1].

    Example:
        >>> eight = odelt.FixedSteps(steps=8, solver="ab2")
        >>> config = odelt.SampleConfig(time=eight, depth=4, guidance=1.5)
        >>> odelt.sample(model, noise, labels, config).shape
        (10, 8, 8, 1)
    """

    time: FixedSteps | Adaptive = FixedSteps()
    length: FixedSteps | Adaptive | None = None
    depth: int | Literal["full", "plain"] | tuple[int, ...] = "full"
    depth_tolerance: float | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    depth_guidance: float = 0.0
    guide_depth: int | None = None
    depth_guidance_interval: tuple[float, float] | None = None
    diffusion: float = 0.0
    as_published: bool = False

    def __check_init__(self) -> None:
        _check_values(vars(self))


def resolve(
    network: Network,
    x: Float[Array, "batch *shape"],
    config: SampleConfig,
    options: dict[str, Any],
    traced: bool = False,
) -> SampleConfig:
    """Return how a call runs the network, in the form that is compiled.

    What may change without compiling is an array: step counts, tolerances, intervals, a guidance
    that is neither 0 nor 1, and one by depth that is not 0. "full", a length and a guide's depth of
    None are replaced by the network's own.
    `options` are fields of `config` that a caller replaces. In a call that is `traced`, which may
    be differentiated, counts stay numbers and both plans keep their adjoint.

    Raises:
        InputError: an option is unknown or of another type, or does not fit the network.
    """
    if not isinstance(config, SampleConfig):
        raise InputError(f"config must be a SampleConfig; got {config}: give a plan by time=")
    _check_options(options)
    chosen = vars(config) | options
    guidance, by_depth = chosen["guidance"], chosen["depth_guidance"]
    tolerance, diffuses = chosen["depth_tolerance"], not _is(chosen["diffusion"], 0)
    kind = network.condition_type
    depth, guide = check_fit(kind, network.depths, network.anytime, chosen)
    guided = isinstance(guidance, Tracer) or np.ndim(guidance) > 0 or guidance not in (0, 1)
    if isinstance(guidance, Tracer) and is_told_guidance(network.condition_type):
        guidance = _learned_weights(network, guidance)
    guidance = one_per_example("guidance", guidance, len(x))
    by_depth = one_per_example("depth_guidance", by_depth, len(x))
    if not isinstance(depth, tuple | str):
        depth = one_per_example("depth", depth, len(x))
    length = network.length if chosen["length"] is None else chosen["length"]
    _warn_of_precision(network, time=chosen["time"], length=length)
    if not traced and isinstance(length, FixedSteps):
        length = without_recomputing(length)
    return _replace(
        config,
        time=with_known_steps(chosen["time"]) if traced else as_arrays(chosen["time"]),
        length=length if isinstance(length, FixedSteps) else as_arrays(length),
        depth=depth,
        as_published=chosen["as_published"],
        guidance=as_array(guidance, jnp.float32) if guided else float(guidance),
        guidance_interval=_times(None if _is(guidance, 1) else chosen["guidance_interval"]),
        depth_guidance=0.0 if guide is None else as_array(by_depth, jnp.float32),
        guide_depth=guide,
        depth_guidance_interval=_times(
            None if guide is None else chosen["depth_guidance_interval"]
        ),
        depth_tolerance=None if tolerance is None else as_array(tolerance, jnp.float32),
        diffusion=as_array(chosen["diffusion"], jnp.float32) if diffuses else 0.0,
    )


def check_fit(
    kind: ConditionType | None, depths: tuple[int, ...], anytime: bool, chosen: dict[str, Any]
) -> tuple[Any, int | None]:
    """Return the depth at which options run a network, and that of its guide, if it has one.

    Args:
        kind: the network's `condition_type`.
        depths: those of the network.
        anytime: whether the network is.
        chosen: every field of a `SampleConfig`.

    Raises:
        InputError: an option does not fit the network, or another option.
    """
    check_guidance(kind, chosen["guidance"])
    if not _is(chosen["diffusion"], 0):
        _check_diffusion(chosen["time"])
        if chosen["as_published"]:
            raise InputError(
                "as_published asks for mean velocities, which have no score: leave out diffusion"
            )
    depth = depths[-1] if _is(chosen["depth"], "full") else chosen["depth"]
    depth = check_depth(tuple(depth) if isinstance(depth, list) else depth, depths)
    if isinstance(depth, tuple):
        _check_depths(depth, chosen["time"])
    if chosen["depth_tolerance"] is not None:
        check_tolerance(anytime, depth, chosen["depth_tolerance"])
    if _is(chosen["depth_guidance"], 0):
        return depth, None
    return depth, _guide_depth(depths, depth, chosen["guide_depth"])


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is traced, as in a call that is differentiated or inside of another jit."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def leave_out_what_is_no_flow(
    config: SampleConfig, options: dict[str, Any], what: str
) -> dict[str, Any]:
    """Return `options` without guidance by depth and diffusion; say so."""
    for name, meaning in (("depth_guidance", "guidance by depth"), ("diffusion", "diffusion")):
        if not _is(options.get(name, getattr(config, name, 0)), 0):
            warnings.warn(f"{what} leaves out {meaning}", stacklevel=3)
            options = options | {name: 0.0}
    return options


def raise_failures(
    result: Tree,
    network: Network,
    config: SampleConfig,
    time_failed: Bool[Array | np.ndarray, " batch"],
    length_failed: Bool[Array | np.ndarray, " batch"],
    start: Float[Array, "batch *shape"] | None = None,
) -> Tree:
    """Return `result`, or raise a SolveError that names the examples whose solve failed.

    If some of the states at the `start` are not finite, it names those, which no steps would mend.
    """
    length = network.length if config.length is None else config.length
    axes = [("time", config.time, time_failed), ("length", length, length_failed)]
    for axis, plan, failed in axes:
        if not isinstance(plan, Adaptive):
            continue
        if isinstance(failed, Tracer):
            result = eqx.error_if(result, failed, plan.failure(axis))
            continue
        if np.any(failed):
            if start is not None and not np.isfinite(start).all():
                states = np.asarray(start).reshape(len(start), -1)
                wrong = np.asarray(~np.isfinite(states).all(axis=1))
                raise SolveError(f"the states to start from are not finite{_which(wrong)}")
            raise SolveError(plan.failure(axis, _which(failed)))
    return result


def _which(examples: Bool[Array | np.ndarray, " batch"]) -> str:
    """Return which examples are meant, for a message."""
    indices = np.flatnonzero(examples)
    listed = ", ".join(map(str, indices[:10])) + (", ..." if len(indices) > 10 else "")
    return f" for {len(indices)} of {len(examples)} examples (index {listed})"


def _learned_weights(network: Network, weights: Array) -> Array:
    """Return traced weights of guidance; one that the network has not learned is a RuntimeError."""
    kind = network.condition_type
    assert kind is not None  # for the type checker: the network is told guidance
    assert kind.max_guidance is not None
    wrong = ~((weights >= 1) & (weights <= kind.max_guidance))
    message = f"this network learned guidance from 1 to {kind.max_guidance:g}"
    return eqx.error_if(weights, wrong, message)


def _replace(config: SampleConfig, **values: Any) -> SampleConfig:
    """Return `config` with other values, of any type: arrays for numbers.

    `eqx.tree_at` would take 0.1 ms, a fifth of a call of a small network.
    """
    structure = jax.tree.structure(config, is_leaf=lambda x: x is not config)
    changed = vars(config) | values
    return jax.tree.unflatten(structure, [changed[f.name] for f in dataclasses.fields(config)])


def _times(interval: tuple[Any, Any] | None) -> tuple[Array | np.ndarray, ...] | None:
    return None if interval is None else tuple(as_array(t, jnp.float32) for t in interval)


def _check_diffusion(time: Plan) -> None:
    """Raise an InputError unless a plan can integrate an SDE."""
    if not isinstance(time, FixedSteps) or time.solver not in STOCHASTIC:
        raise InputError(
            f"diffusion needs fixed steps of time, of one of the solvers {', '.join(STOCHASTIC)}; "
            f"got {time}"
        )


def _check_depths(depths: tuple[int, ...], time: Plan) -> None:
    """Raise an InputError unless there is a depth for every step of a plan."""
    if not isinstance(time, FixedSteps) or time.solver not in STEP_SOLVERS:
        raise InputError(
            "a depth for every step needs fixed steps of one of the solvers "
            f"{', '.join(STEP_SOLVERS)}, which evaluate once a step; got {time}"
        )
    if isinstance(time.count, Tracer) or len(depths) != int(time.count):
        raise InputError(f"there must be a depth for each of {time.count} steps; got {depths}")


def _guide_depth(depths: tuple[int, ...], depth: Any, asked: int | None) -> int | None:
    """Return the depth of the guide; None if it is the smallest, and so is all that it would guide.

    Raises:
        InputError: it can guide nothing: the network has one depth, or a guide was asked for that
            is as deep.
    """
    guide = int(check_depth(depths[0] if asked is None else asked, depths))
    known = [depth] if isinstance(depth, int) else depth if isinstance(depth, tuple) else [np.inf]
    if max(known) > guide:
        return guide
    if asked is None and len(depths) > 1:
        return None
    raise InputError(f"the guide must be shallower than depth {max(known)}; got {guide}")


def _is(value: Any, constant: str | int) -> bool:
    """Whether a value is this string or number; an array is not compared."""
    return np.ndim(value) == 0 and not isinstance(value, Array | Tracer) and value == constant


def _check_options(options: dict[str, Any]) -> None:
    names = [field.name for field in dataclasses.fields(SampleConfig)]
    for name in options:
        find_by_name("sampling option", name, dict.fromkeys(names, True))
    _check_values(options)


def _check_values(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is None and name in ("length", "depth_tolerance"):
            continue
        if name in ("time", "length") and not isinstance(value, Plan):
            raise InputError(f"{name} must be a FixedSteps or an Adaptive; got {value!r}")
        if name not in ("guidance", "depth_guidance", "diffusion", "depth_tolerance"):
            continue
        if not is_real(value):
            raise InputError(f"{name} must be a number; got {value!r}")
    for name in ("diffusion", "depth_tolerance"):
        if np.size(options.get(name, 0)) != 1:
            raise InputError(f"{name} must be one number; got {options[name]!r}")
    diffusion = options.get("diffusion", 0.0)
    if not isinstance(diffusion, Tracer) and not np.asarray(diffusion) >= 0:
        raise InputError(f"diffusion must not be negative; got {diffusion}")
    tolerance = options.get("depth_tolerance")
    if (
        tolerance is not None
        and not isinstance(tolerance, Tracer)
        and not np.asarray(tolerance) > 0
    ):
        raise InputError(f"depth_tolerance must be positive; got {tolerance}")
    for name in ("depth", "guide_depth"):
        value = options.get(name)
        depths = value if isinstance(value, tuple | list) else (value,)
        if not depths or any(isinstance(depth, int) and depth < 1 for depth in depths):
            raise InputError(f"{name} must be at least one block; got {value}")
    for name in ("guidance_interval", "depth_guidance_interval"):
        interval = options.get(name)
        times: Any = interval if np.iterable(interval) else ()
        if interval is None or any(isinstance(time, Tracer) for time in times):
            continue
        known = len(times) == 2 and np.asarray(times).dtype.kind in "biuf"
        if not (known and 0 <= times[0] < times[1] <= 1):
            raise InputError(f"{name} must be two rising times in [0, 1]; got {interval}")
    for name, value in options.items():
        check_numbers(value, name)
        known = isinstance(value, Array | np.ndarray) and not isinstance(value, Tracer)
        if known and not np.isfinite(value).all():
            raise InputError(f"{name} must be finite numbers; got {np.asarray(value).tolist()}")


def _warn_of_precision(network: Network, **plans: Plan) -> None:
    """Warn of tolerances that the rounding of a bfloat16 network does not let a solver meet."""
    config = getattr(network, "config", None)
    if getattr(config, "dtype", "float32") != "bfloat16":
        return
    for axis, plan in plans.items():
        if not isinstance(plan, Adaptive) or is_traced(plan):
            continue
        if min(plan.rtol, plan.atol) < BFLOAT16_TOLERANCE:
            warnings.warn(
                f"a bfloat16 network cannot meet {axis}.rtol {plan.rtol:g} and {axis}.atol "
                f"{plan.atol:g}: steps are wasted; use {BFLOAT16_TOLERANCE:g} or more",
                stacklevel=5,
            )
