"""How an ODE on [0, 1] is solved: one description for the time axis and the length axis.

A plan is `FixedSteps` or `Adaptive`, a few numbers and names. It is the only place that turns them
into a diffrax solver, a step size controller and an adjoint.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.internal import while_loop
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from odelt_eqx.errors import InputError, check_choices, check_range, check_whole
from odelt_eqx.ode.multistep import AdamsBashforth

EmbeddedSolver = Literal["midpoint", "heun", "ralston", "bosh3", "tsit5", "dopri5", "dopri8"]
"""The solvers that estimate their own error, which an adaptive plan needs."""
Solver = Literal["euler", "ab2", "ab3", EmbeddedSolver]
Grid = Literal["uniform", "cosine", "logit-normal"]
Adjoint = Literal["keep", "recompute"]
Jumps = Float[Array, " jumps"]

SOLVERS: dict[str, Callable[[], diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "ab2": partial(AdamsBashforth, 2),
    "ab3": partial(AdamsBashforth, 3),
    "midpoint": diffrax.Midpoint,
    "heun": diffrax.Heun,
    "ralston": diffrax.Ralston,
    "bosh3": diffrax.Bosh3,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
}

STOCHASTIC = ("euler", "heun")
"""The solvers that also integrate an SDE with additive noise."""
MOST_STEPS = 2**24
"""Steps of a solve, at most: as many as can be counted in float32."""
FIRST_STEP = 0.1
"""The first step that an adaptive solve tries."""


class Plan(eqx.Module):
    """A solver with its step sizes: abstract base of `FixedSteps` and `Adaptive`."""

    solver: eqx.AbstractVar[Solver]

    @property
    @abc.abstractmethod
    def per_example(self) -> bool:
        """Whether every example chooses its own steps."""

    @abc.abstractmethod
    def arguments(self, backwards: bool = False, jumps: Jumps | None = None) -> dict[str, Any]:
        """Return the keyword arguments of `diffrax.diffeqsolve`, from 0 to 1 or backwards.

        An adaptive plan steps to the times `jumps`, where the field is not continuous.
        """

    def evaluations(self, steps: int | Int[Array, "*batch"]) -> int | Int[Array, "*batch"]:
        """Return how often `steps` steps, rejected ones included, evaluate the field."""
        tableau = getattr(SOLVERS[self.solver], "tableau", None)
        if tableau is None:
            return steps
        return steps * (tableau.num_stages - 1) + 1 if tableau.fsal else steps * tableau.num_stages


def _as_tuple(times: Iterable[Any]) -> tuple[Any, ...]:
    """Return numbers, which may be in one array, as a tuple of floats or arrays."""
    try:
        return tuple(t if isinstance(t, Array | np.ndarray) else float(t) for t in times)
    except (TypeError, ValueError):
        raise InputError(f"times must be numbers from 0 to 1; got {times!r}") from None


class FixedSteps(Plan):
    """A given number of steps across [0, 1], equal or along a grid.

    Args:
        steps: number of steps, at least 1; ignored if `times` are given.
        solver: "euler" is the published method on both axes. "ab2" and "ab3", Adams-Bashforth of
            order 2 and 3, evaluate the field once a step, too.
        adjoint: what differentiating the solve stores: "keep" all that was computed (fast),
            "recompute" only what enters each step or, on the length axis, each block (small).
        grid: where the steps end: "uniform", "cosine" (dense at both ends) or "logit-normal" (the
            quantiles of that distribution).
        times: the grid points themselves, rising from 0 to 1, instead of a named grid. They may be
            traced, and differentiated by.

    Raises:
        InputError: `steps` is not a positive integer, `times` do not rise from 0 to 1, or a name is
            unknown.

    Example:
        >>> heun = odelt.FixedSteps(steps=4, solver="heun")
        >>> odelt.sample(model, noise, labels, time=heun).shape
        (10, 8, 8, 1)
    """

    steps: int = 1
    solver: Solver = eqx.field(static=True, default="euler")
    adjoint: Adjoint = eqx.field(static=True, default="keep")
    grid: Grid = eqx.field(static=True, default="uniform")
    times: tuple[float, ...] = eqx.field(converter=_as_tuple, default=())

    def __check_init__(self) -> None:
        check_choices(self)
        if not isinstance(self.steps, Tracer):
            check_whole(self, "steps")
            check_range(self, "steps", least=1)
            check_range(self, "steps", most=MOST_STEPS)
        if not self.times or any(isinstance(t, Tracer) for t in self.times):
            return
        rising = all(a < b for a, b in itertools.pairwise(self.times))
        if not (rising and (self.times[0], self.times[-1]) == (0, 1)):
            raise InputError(f"times must rise from 0 to 1; got {self.times}")

    @property
    def per_example(self) -> bool:
        """False: the batch shares fixed steps."""
        return False

    @property
    def count(self) -> int | Int[Array | np.ndarray, ""]:
        """The number of steps."""
        return len(self.times) - 1 if self.times else self.steps

    def point(self, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return where step `index` starts; the last step ends at point `count`."""
        if self.times:
            return jnp.stack([jnp.asarray(t, jnp.float32) for t in self.times])[index]
        return grid_point(self.grid, index.astype(jnp.float32) / jnp.float32(self.count))

    def index(self, t: Float[Array, ""], backwards: bool = False) -> Int[Array, ""]:
        """Return the index of the step that starts at `t`, a point of the grid, or ends there."""
        if self.times:
            points = jnp.stack([jnp.asarray(t, jnp.float32) for t in self.times])
            index = jnp.searchsorted(points, t, side="right") - 1
        else:
            index = jnp.round(grid_share(self.grid, t) * jnp.float32(self.count)).astype(jnp.int32)
        return jnp.clip(index - int(backwards), 0, self.count - 1)

    def step_length(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Return the length of the step that starts at `t`, a point of the grid."""
        index = self.index(t)
        return self.point(index + 1) - self.point(index)

    def arguments(self, backwards: bool = False, jumps: Jumps | None = None) -> dict[str, Any]:  # noqa: D102
        del backwards, jumps  # the controller follows the direction of the solve, and its grid
        known = self.count if isinstance(self.count, int) else None
        keep = known is not None and self.adjoint == "keep"
        adjoint = KeepAdjoint() if keep else diffrax.RecursiveCheckpointAdjoint(known)
        return {
            "solver": SOLVERS[self.solver](),
            "stepsize_controller": GridController(self),
            "dt0": None,
            "max_steps": known,
            "adjoint": adjoint,
        }


class Adaptive(Plan):
    """Steps chosen by a PID controller so that the error of each meets the tolerances.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in units of the state.
        solver: any that estimates its error, so not "euler", "ab2" or "ab3".
        max_steps: the solve fails after this many accepted and rejected steps.
        per_example: every example chooses its own steps; otherwise the batch shares them.
        pcoeff: proportional coefficient of the controller.
        icoeff: integral coefficient of the controller.
        dcoeff: derivative coefficient of the controller.

    Raises:
        InputError: a tolerance or `max_steps` is not positive, a number is not finite, or `solver`
            does not estimate its error.

    Example:
        >>> adaptive = odelt.Adaptive(solver="tsit5", rtol=1e-2, atol=1e-2)
        >>> odelt.sample(model, noise, labels, time=adaptive).shape
        (10, 8, 8, 1)
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    solver: EmbeddedSolver = eqx.field(static=True, default="dopri5")
    max_steps: int = eqx.field(static=True, default=4096)
    per_example: bool = eqx.field(static=True, default=False)
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0

    def __check_init__(self) -> None:
        check_choices(self)
        known = lambda *names: [n for n in names if not isinstance(getattr(self, n), Tracer)]
        check_range(self, *known("rtol", "atol"), above=0)
        check_range(self, *known("pcoeff", "icoeff", "dcoeff"))
        check_whole(self, "max_steps")
        check_range(self, "max_steps", least=1)
        check_range(self, "max_steps", most=MOST_STEPS)

    def arguments(self, backwards: bool = False, jumps: Jumps | None = None) -> dict[str, Any]:  # noqa: D102
        controller = diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol,
            pcoeff=self.pcoeff,
            icoeff=self.icoeff,
            dcoeff=self.dcoeff,
        )
        if jumps is not None:  # one at an end of the solve is none
            inside = jnp.where((jumps > 0) & (jumps < 1), jumps, 2.0)
            controller = diffrax.ClipStepSizeController(controller, jump_ts=inside)
        return {
            "solver": SOLVERS[self.solver](),
            "stepsize_controller": controller,
            "dt0": -FIRST_STEP if backwards else FIRST_STEP,
            "max_steps": self.max_steps,
            "adjoint": diffrax.RecursiveCheckpointAdjoint(),
        }

    def failure(self, axis: str, which: str = "") -> str:
        """Return the message for a solve on `axis` that ran out of steps."""
        return (
            f"the {axis} axis needed more than {self.max_steps} steps of {self.solver} at these "
            f"tolerances{which}: raise {axis}.max_steps or loosen {axis}.rtol and {axis}.atol"
        )


def as_arrays(plan: Plan) -> Plan:
    """Return `plan` with arrays for its numbers, so that changing one recompiles nothing."""
    return jax.tree.map(as_array, plan)


def as_array(value: ArrayLike, dtype: DTypeLike | None = None) -> Array | np.ndarray:
    """Return a number as an array, which a program takes as an argument.

    It is one of NumPy's: to make one on a device takes longer than the step of a small network.
    What is an array of JAX's stays one.
    """
    if isinstance(value, Array):
        return jnp.asarray(value, dtype)
    kind = np.result_type(value) if dtype is None else dtype
    return np.asarray(value, jax.dtypes.canonicalize_dtype(kind))


def with_known_steps(plan: Plan) -> Plan:
    """Return `plan` with a Python int for a number of steps that is known in an array."""
    if not isinstance(plan, FixedSteps) or isinstance(plan.steps, Tracer):
        return plan
    return dataclasses.replace(plan, steps=int(plan.steps))


def without_recomputing(plan: Plan) -> Plan:
    """Return `plan` for a solve that is not differentiated, or whose field does the recomputing."""
    if isinstance(plan, FixedSteps) and plan.adjoint == "recompute":
        return dataclasses.replace(plan, adjoint="keep")
    return plan


def grid_point(grid: Grid, share: Float[Array, ""]) -> Float[Array, ""]:
    r"""Return the point of a named grid of [0, 1] after a share of its steps.

    "uniform": $s$; "cosine": $\sin^2(\pi s / 2)$; "logit-normal": $\sigma(\Phi^{-1}(s))$, the
    quantiles of the logit-normal distribution (arXiv 2403.03206).
    """
    if grid == "cosine":
        return jnp.sin(jnp.pi / 2 * share) ** 2
    if grid == "logit-normal":
        return jax.nn.sigmoid(jax.scipy.special.ndtri(share))
    return share


def grid_share(grid: Grid, point: Float[Array, ""]) -> Float[Array, ""]:
    """Return the share of its steps after which a named grid is at `point`, see `grid_point`."""
    if grid == "cosine":
        return 2 / jnp.pi * jnp.arcsin(jnp.sqrt(point))
    if grid == "logit-normal":
        return jax.scipy.special.ndtr(jax.scipy.special.logit(point))
    return point


class GridController(diffrax.AbstractStepSizeController[Int[Array, ""], None]):
    """A diffrax controller that steps along the grid of a plan, forwards or backwards.

    The number of steps may be traced, so one compiled program serves any. Unlike `dt0`, it adds no
    runtime check to the program.
    """

    plan: FixedSteps
    direction: Any = 1

    def wrap(self, direction: Any) -> "GridController":
        """Return the controller for a solve in `direction`, 1 or -1."""
        return GridController(self.plan, direction)

    def point(self, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return where step `index` starts, in diffrax's time, which always increases."""
        index = jnp.where(self.direction > 0, index, self.plan.count - index)
        return self.direction * self.plan.point(index)

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: None, args: Any, func: Any, order: Any
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Return the end of the first step and the index of the point after it."""
        return self.point(jnp.array(1)), jnp.array(2)

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> tuple[Any, ...]:
        """Accept the step and go on to the next point."""
        next_point = self.point(jnp.minimum(state, self.plan.count))
        return True, t1, next_point, False, state + 1, diffrax.RESULTS.successful


class KeepAdjoint(diffrax.AbstractAdjoint):
    """Differentiates a known number of steps by keeping what each of them computed.

    The loop over steps is a `jax.lax.scan` (a single step is inlined): nothing is recomputed. With
    Euler, reverse and forward mode go through it as through any JAX code; the stages of the other
    solvers are a loop of diffrax's own, for reverse mode only.
    """

    def loop(self, *, max_steps: int | None, **kwargs: Any) -> Any:
        """Run `max_steps` steps; diffrax calls this."""
        for unused in ("throw", "passed_solver_state", "passed_controller_state"):
            del kwargs[unused]

        def repeat(_cond: Callable, body: Callable, state: PyTree, **_: Any) -> PyTree:
            if max_steps == 1:
                return body(state)
            return jax.lax.scan(lambda s, _: (body(s), None), state, length=max_steps)[0]

        # The inner loop saves the states within a step, of which there may be any number.
        saving = partial(while_loop, kind="checkpointed")
        return self._loop(
            max_steps=max_steps, inner_while_loop=saving, outer_while_loop=repeat, **kwargs
        )
