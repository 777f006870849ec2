"""Noise to images and back along the flow."""

from collections.abc import Sequence
from typing import Any, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import Adaptive, FixedSteps, Plan
from odelt_eqx.ode.time import SolveStats, TimeSolution, integrate_time, one_by_one
from odelt_eqx.sampling.options import Depth, Options, Setting, raise_failures, setting
from odelt_eqx.sharding import evenly, whole


def sample(
    model: DiT,
    noise: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    *,
    time: Plan = FixedSteps(),
    length: Plan | None = None,
    depth: Depth = "full",
    guidance: float = 1.0,
    exit_tolerance: float | None = None,
) -> Float[Array, "batch height width channels"]:
    """Carry noise to images along the model's velocity, one compiled program for any step count.

    Args:
        model: the network.
        noise: standard normal draws, (batch, height, width, channels), float32.
        labels: the classes asked for; the config's `null_label` for none.
        time: how the time ODE is solved over [0, 1].
        length: how each group's unit of length is solved; None as the model's config says.
        depth: blocks to run, one of `model.config.depths`, for all or one per picture; "full" for
            all there are; None for the plain DiT.
        guidance: classifier-free guidance weight; 1 runs the labels alone, 0 no label.
        exit_tolerance: a picture's network evaluation stops at the first edge of the length where
            the last group changed `u` by less than this share of it; None runs to `depth`.

    Returns:
        Images at t = 1, not clipped.

    Raises:
        InputError: a shape, a label, the depth or a plan does not fit the model.
        SolveError: an adaptive plan ran out of steps; it names the examples.
    """
    options = Options(
        time=time, length=length, depth=depth, guidance=guidance, exit_tolerance=exit_tolerance
    )
    return _solved(model, noise, labels, options)


def sample_with_stats(
    model: DiT,
    noise: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    **options: Unpack[Options],
) -> tuple[Float[Array, "batch height width channels"], SolveStats]:
    """Do what `sample` does, wait for the result and say what each picture took.

    A picture whose solve ran out of steps is not an error here: it is returned as far as it got,
    the statistics say so, and the others are whole.

    Args:
        model: the network.
        noise: as for `sample`.
        labels: as for `sample`.
        **options: as for `sample`.
    """
    plans = setting(model, noise, labels, options)
    solution = _solve(*jax.tree.flatten(model), noise, labels, plans, False, None)
    return solution.states, jax.tree.map(np.asarray, solution.stats)


class Program:
    """`sample_with_stats` compiled beforehand, for one shape of batch and one kind of plan.

    What may change without compiling is the noise, the labels, the numbers of the time plan,
    its steps or tolerances, but not its solver; and the guidance between numbers but 0 and 1.

    Args:
        model: the network.
        noise: as for `sample`.
        labels: as for `sample`.
        **options: as for `sample`.
    """

    def __init__(
        self,
        model: DiT,
        noise: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        **options: Unpack[Options],
    ):
        """Compile, and run nothing."""
        self._model, self._options = model, options
        self._weights, structure = jax.tree.flatten(model)
        plans = setting(model, noise, labels, options)
        lowered = _solve.lower(self._weights, structure, noise, labels, plans, False, None)
        self._compiled, self._structure = lowered.compile(), structure

    @property
    def peak_bytes(self) -> int:
        """What it needs on a device at once, see `peak_bytes`."""
        return peak_bytes(self._compiled)

    def __call__(
        self,
        noise: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        time: Plan,
        guidance: float,
    ) -> tuple[Float[Array, "batch height width channels"], SolveStats]:
        """Return images and what they took, both ready, as `sample_with_stats` does."""
        options = Options(**{**self._options, "time": time, "guidance": guidance})
        plans = setting(self._model, noise, labels, options)
        inputs = (self._weights, self._structure, noise, labels, plans, False, None)
        solution = jax.block_until_ready(self._compiled(*inputs))
        return solution.states, jax.tree.map(np.asarray, solution.stats)


def peak_bytes(program: Any) -> int:
    """Return what a program needs on a device at once: arguments, results and all in between.

    Args:
        program: what `eqx.filter_jit(function).lower(...).compile()` returns.
    """
    memory = program.compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return kept + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def trajectory(
    model: DiT,
    noise: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    at: Sequence[float],
    **options: Unpack[Options],
) -> Float[Array, "times batch height width channels"]:
    """Return the states on the way from noise to images, at the times asked for.

    Between the steps of the solver they are interpolated as the solver does.

    Args:
        model: the network.
        noise: as for `sample`.
        labels: as for `sample`.
        at: rising times in [0, 1].
        **options: as for `sample`.

    Raises:
        InputError: the times do not rise within [0, 1], or as for `sample`.
        SolveError: as for `sample`.
    """
    times = np.asarray(at, np.float32)
    if not len(times) or times[0] < 0 or times[-1] > 1 or (np.diff(times) <= 0).any():
        raise InputError(f"at must hold rising times in [0, 1]; got {tuple(at)}")
    return _solved(model, noise, labels, options, at=jnp.asarray(times))


def invert(
    model: DiT,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    **options: Unpack[Options],
) -> Float[Array, "batch height width channels"]:
    """Carry images back to the noise they come from: the time ODE from t = 1 to t = 0.

    `sample` with the same arguments brings the images back, up to the error of both solves.

    Args:
        model: the network.
        images: data, in [-1, 1].
        labels: their classes.
        **options: as for `sample`.

    Raises:
        InputError: as for `sample`.
        SolveError: as for `sample`.
    """
    return _solved(model, images, labels, options, backwards=True)


def _solved(
    model: DiT,
    start: Array,
    labels: Array,
    options: Options,
    *,
    backwards: bool = False,
    at: Array | None = None,
) -> Array:
    """Return the states at the times asked for or the last, or raise in plain words."""
    plans = setting(model, start, labels, options)
    solution = _solve(*jax.tree.flatten(model), start, labels, plans, backwards, at)
    return raise_failures(solution.states, solution.stats, plans.time, plans.length)


@eqx.filter_jit
def _solve(
    weights: list[Array],
    structure: Any,
    start: Array,
    labels: Array,
    plans: Setting,
    backwards: bool,
    at: Array | None,
) -> TimeSolution:
    """Solve the time ODE of a model that comes in pieces, as `jax.tree.flatten` takes it apart.

    JAX takes apart every module it is given, several times a call and in Python: on small networks
    that is a third of a call's time. A list it takes apart in no time.
    """
    model: DiT = jax.tree.unflatten(structure, weights)

    def solve(x: Array, labels: Array, depth: Depth) -> TimeSolution:
        return integrate_time(
            plans.field(model, labels, depth),
            x,
            plans.time,
            flow_index=model.config.flow_index,
            backwards=backwards,
            at=at,
        )

    alone = isinstance(plans.time, Adaptive) and plans.time.per_example
    start, labels = evenly(whole((start, labels)))
    solution = (one_by_one(solve) if alone else solve)(start, labels, plans.depth)
    states = solution.states[-1] if at is None else solution.states
    return whole(TimeSolution(states, solution.stats))
