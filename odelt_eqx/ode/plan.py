"""How an ODE is solved: one description that serves the time axis and the length axis."""

import abc
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from odelt_eqx.errors import InputError
from odelt_eqx.ode.grid import GRIDS, GridName, GridSteps

Solver = Literal["euler", "midpoint", "heun", "ralston", "bosh3", "tsit5", "dopri5", "dopri8"]
EmbeddedSolver = Literal["midpoint", "heun", "ralston", "bosh3", "tsit5", "dopri5", "dopri8"]
"""The solvers that estimate their own error, which an adaptive plan needs."""

SOLVERS: dict[str, type[diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "midpoint": diffrax.Midpoint,
    "heun": diffrax.Heun,
    "ralston": diffrax.Ralston,
    "bosh3": diffrax.Bosh3,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
}


FIRST_STEP = 0.1
"""The first step an adaptive solve of [0, 1] tries; its controller goes on from there."""


class KeepAdjoint(diffrax.AbstractAdjoint):
    """Differentiates a known number of steps by keeping what each of them computed.

    The loop over steps is a `jax.lax.scan` (one step is inlined): nothing is recomputed. With Euler
    both reverse and forward mode go through it as through any JAX code; the stages of the other
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

        return self._loop(
            max_steps=max_steps, inner_while_loop=repeat, outer_while_loop=repeat, **kwargs
        )


class Plan(eqx.Module):
    """A solver with its step sizes: abstract base of `FixedSteps` and `Adaptive`."""

    solver: eqx.AbstractVar[Solver]

    @abc.abstractmethod
    def arguments(self, backwards: bool = False) -> dict[str, Any]:
        """Return the keyword arguments of `diffrax.diffeqsolve` for this plan on [0, 1].

        Args:
            backwards: the solve runs from 1 to 0.
        """

    @abc.abstractmethod
    def step_index(self, flow_index: int) -> int | Int[Array, ""]:
        """Return the step index that a network conditioned on its step is asked for.

        Args:
            flow_index: the index of the flow field itself, `log2(denoise_timesteps)`.
        """

    def evaluations(self, steps: int | Int[Array, "*batch"]) -> int | Int[Array, "*batch"]:
        """Return how often `steps` steps (rejected ones included) evaluate the field."""
        tableau = getattr(SOLVERS[self.solver], "tableau", None)
        if tableau is None:
            return steps
        return steps * (tableau.num_stages - 1) + 1 if tableau.fsal else steps * tableau.num_stages


def traced(plan: Plan) -> Plan:
    """Return `plan` with its numbers as arrays, so that changing one compiles nothing."""
    return jax.tree.map(jnp.asarray, plan)


class FixedSteps(Plan):
    """A given number of steps of one solver across [0, 1], equal or along a grid.

    Args:
        steps: number of steps, at least 1; `times`, where given, say it instead.
        solver: any of the eight; "euler" is the published method on both axes.
        adjoint: what the gradient of a length solve does: "keep" stores what each block
            computed (fast; of a `Stack` its products with weights), "recompute" stores what went
            into each block only (small).
        grid: where the steps end: "uniform", "cosine" (dense at both ends) or "logit-normal"
            (the quantiles of that distribution).
        times: the ends themselves instead of a named grid, rising from 0 to 1.

    Raises:
        InputError: `steps` is not positive, `times` do not rise from 0 to 1, or a name is not one
            of those listed.
    """

    steps: int = 1
    solver: Solver = eqx.field(static=True, default="euler")
    adjoint: Literal["keep", "recompute"] = eqx.field(static=True, default="keep")
    grid: GridName = eqx.field(static=True, default="uniform")
    times: tuple[float, ...] = ()

    def __check_init__(self) -> None:
        _check_name("solver", self.solver, get_args(Solver))
        _check_name("adjoint", self.adjoint, ("keep", "recompute"))
        _check_name("grid", self.grid, GRIDS)
        if self.steps < 1:
            raise InputError(f"steps must be at least 1; got {self.steps}")
        rising = all(a < b for a, b in itertools.pairwise(self.times))
        if self.times and not (rising and (self.times[0], self.times[-1]) == (0, 1)):
            raise InputError(f"times must rise from 0 to 1; got {self.times}")

    @property
    def count(self) -> int | Int[Array, ""]:
        """The number of steps."""
        return len(self.times) - 1 if self.times else self.steps

    def point(self, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return where step `index` starts; the last one ends at point `count`."""
        return self._grid.point(index)

    @property
    def _grid(self) -> GridSteps:
        return GridSteps(self.count, self.grid, self.times)

    def arguments(self, backwards: bool = False) -> dict[str, Any]:  # noqa: D102
        del backwards  # the grid follows the direction of the solve
        max_steps = self.count if isinstance(self.count, int) else None
        known = max_steps is not None
        adjoint = KeepAdjoint() if known else diffrax.RecursiveCheckpointAdjoint()
        return {
            "solver": SOLVERS[self.solver](),
            "stepsize_controller": self._grid,
            "dt0": None,
            "max_steps": max_steps,
            "adjoint": adjoint,
        }

    def step_index(self, flow_index: int) -> int | Int[Array, ""]:
        """Return `floor(log2 steps)`, at most `flow_index`."""
        if isinstance(self.count, int):
            return min(self.count.bit_length() - 1, flow_index)
        floor_log2 = 31 - jax.lax.clz(self.count.astype(jnp.int32))
        return jnp.minimum(floor_log2, flow_index)


class Adaptive(Plan):
    """Steps chosen by a PID controller so that each one's error meets the tolerances.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in the units of the state.
        solver: any of the eight but "euler", which has no error estimate.
        max_steps: the solve gives up, with an error, after this many accepted and rejected steps.
        per_example: on the time axis, choose steps for each example on its own instead of one step
            for the batch; the length axis always does.
        pcoeff: proportional coefficient of the controller.
        icoeff: integral coefficient of the controller.
        dcoeff: derivative coefficient of the controller.

    Raises:
        InputError: a tolerance or `max_steps` is not positive, or `solver` has no error estimate.
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
        _check_name("solver", self.solver, get_args(EmbeddedSolver))
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not value > 0:
                raise InputError(f"{name} must be positive; got {value}")
        if self.max_steps < 1:
            raise InputError(f"max_steps must be at least 1; got {self.max_steps}")

    def arguments(self, backwards: bool = False) -> dict[str, Any]:  # noqa: D102
        return {
            "solver": SOLVERS[self.solver](),
            "stepsize_controller": diffrax.PIDController(
                rtol=self.rtol,
                atol=self.atol,
                pcoeff=self.pcoeff,
                icoeff=self.icoeff,
                dcoeff=self.dcoeff,
            ),
            "dt0": -FIRST_STEP if backwards else FIRST_STEP,
            "max_steps": self.max_steps,
            "adjoint": diffrax.RecursiveCheckpointAdjoint(),
        }

    def step_index(self, flow_index: int) -> int:
        """Return `flow_index`: an adaptive solve follows the flow field itself.

        Differs from the reference: it passes 0 here, the field of one step across [0, 1].
        """
        return flow_index

    def failure(self, axis: str, whose: str = "") -> str:
        """Return the message for a solve on `axis` that ran out of steps."""
        return (
            f"the {axis} axis needed more than {self.max_steps} steps of {self.solver} at these "
            f"tolerances{whose}: raise {axis}.max_steps or loosen {axis}.rtol and {axis}.atol"
        )


def undifferentiated(plan: Plan) -> Plan:
    """Return `plan` for a solve that is not differentiated, in which nothing is kept anyway."""
    if isinstance(plan, FixedSteps) and plan.adjoint != "keep":
        return dataclasses.replace(plan, adjoint="keep")
    return plan


def _check_name(field: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise InputError(f"{field} must be one of {', '.join(known)}; got {name!r}")
