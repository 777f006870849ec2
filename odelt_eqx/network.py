"""What the rest of the package knows of a network.

Objectives, samplers, likelihood, training and evaluation see a `Network`: a velocity field whose
depth can be chosen. How it is built is its own business; `odelt_eqx.nn` has two.
"""

import abc
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Real

from odelt_eqx.condition import (
    Condition,
    ConditionLike,
    ConditionType,
    Guidance,
    as_condition,
    as_guidance,
    check_condition,
    learns_null_only,
)
from odelt_eqx.errors import InputError
from odelt_eqx.inputs import (
    Depth,
    Inputs,
    as_states,
    batch_key,
    check_depth,
    check_tolerance,
    one_per_example,
)
from odelt_eqx.ode.checks import check_rising
from odelt_eqx.ode.length import LengthDepth, LengthStats, take_rows
from odelt_eqx.ode.plan import Adaptive, Plan


class Network(eqx.Module):
    """A velocity field `dx/dt = v(t, x)` whose depth can be chosen: abstract.

    Args:
        shape: shape of one example: (height, width, channels) of images, (size,) of vectors.
        condition_type: what a condition is; None for a network without one.
        depths: depths that may be asked for, in blocks, rising; the last one is the full depth.
        flow_index: the step index that asks for the flow field itself, `log2` of the time steps
            that training knows.
        length: how each group's unit of length is solved unless a call says otherwise.
        anytime: whether the velocity at a depth is the same whatever depth an integration stops at,
            so that one gives the velocities at all depths on its way.

    Raises:
        InputError: `shape` or `depths` is no tuple, or the depths do not rise.

    Example:
        >>> class Still(odelt.Network):
        ...     shape, condition_type, depths, flow_index = (2,), None, (1,), 0
        ...     length, anytime = odelt.FixedSteps(), True
        ...
        ...     def velocity(self, inputs):
        ...         still = lambda u, depth: jnp.zeros_like(inputs.x)
        ...         return odelt.integrate_length(
        ...             [odelt.ODEBlock((lambda h, c, key=None: h,))],
        ...             inputs.x, inputs.t[:, None], inputs.depth, inputs.length, still,
        ...             tolerance=inputs.tolerance,
        ...         )
        >>> odelt.sample(Still(), jnp.ones((3, 2)), depth=1).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    condition_type: eqx.AbstractVar[ConditionType | None]
    depths: eqx.AbstractVar[tuple[int, ...]]
    flow_index: eqx.AbstractVar[int]
    length: eqx.AbstractVar[Plan]
    anytime: eqx.AbstractVar[bool]

    def __check_init__(self) -> None:
        for name in ("shape", "depths"):
            if not isinstance(value := getattr(self, name), tuple):
                raise InputError(f"{name} of a network must be a tuple of integers; got {value!r}")
        check_rising(self.depths)

    @abc.abstractmethod
    def velocity(self, inputs: Inputs) -> tuple[Float[Array, "*batch_shape"], LengthStats]:
        """Return the velocity and what its length ODE took.

        The author of a network implements this, usually by `odelt_eqx.ode.integrate_length`, which
        takes the depth in every form; users call the network. For a tuple of depths the velocity
        is (depths, batch, *shape).
        """

    @property
    def depth(self) -> int:
        """The full depth, in blocks."""
        return self.depths[-1]

    def null(self, batch_size: int) -> Condition | None:
        """Return the condition that stands for none; None for a network without conditions."""
        return None if self.condition_type is None else self.condition_type.null(batch_size)

    def __call__(
        self,
        t: float | Float[Array, "*#batch"],
        x: Float[Array, "batch *shape"],
        step_index: int | float | Real[Array, "*#batch"],
        condition: ConditionLike | None = None,
        *,
        depth: Depth = "full",
        length: Plan | None = None,
        key: Key[Array, "*#batch"] | None = None,
        tolerance: float | Float[Array, ""] | None = None,
        guidance: Guidance | None = None,
    ) -> Float[Array, "batch *shape"]:
        """Return the velocity dx/dt, (batch, *shape).

        Args:
            t: time, 0 noise and 1 data, one for all or one per example.
            x: states, (batch, *shape); integers are taken as float32.
            step_index: the mean velocity over a step of `2 ** -step_index` is asked for, by
                `flow_index` the flow field; one for all or one per example.
            condition: class labels (batch,), vectors (batch, size), or None without a condition. A
                network that has learned the null condition alone is given that in its place.
            depth: blocks to run, one of `depths`. An int: for all examples. A NumPy array (batch,),
                known while tracing: each example leaves at its depth. A JAX array (batch,): every
                group runs, masked. "full": the full depth. "plain": every block once, without a
                length ODE.
            length: how each group's unit of length is solved; None as the network says.
            key: dropout key, one for all or one per example, or None for no dropout; see
                `typed_key`.
            tolerance: an example stops at the first of the `depths`, the second or later, where the
                velocity changed by less than this share of it, in the root mean square; None runs
                to `depth`. Only with one depth for all, on an `anytime` network.
            guidance: what a network is told that learned guidance as a condition; None for none.

        Raises:
            InputError: a shape, a label, the depth, a key, a tolerance or guidance does not fit
                this network.
            RuntimeError: a traced depth does not, or an adaptive `length` ran out of steps.
        """
        velocity, stats = self.evaluate(
            t, x, step_index, condition, depth, length, key, tolerance, guidance
        )
        plan = self.length if length is None else length
        return raise_failures_of_length(velocity, stats, plan)

    def velocities(
        self,
        t: float | Float[Array, "*#batch"],
        x: Float[Array, "batch *shape"],
        step_index: int | float | Real[Array, "*#batch"],
        condition: ConditionLike | None = None,
        *,
        depths: Sequence[int] | None = None,
        length: Plan | None = None,
        key: Key[Array, "*#batch"] | None = None,
        guidance: Guidance | None = None,
    ) -> Float[Array, "depths batch *shape"]:
        """Return the velocity at each of `depths`, which rise; all of the network's by default.

        They cost what the last one does on an `anytime` network, and a pass each on others. The
        other arguments and the errors are those of a call.
        """
        depths = self.depths if depths is None else depths
        if not isinstance(depths, tuple | list):
            raise InputError(f"depths must be a tuple of rising depths; got {depths}")
        depths = tuple(depths)
        velocities, stats = self.evaluate(
            t, x, step_index, condition, depths, length, key, guidance=guidance
        )
        plan = self.length if length is None else length
        return raise_failures_of_length(velocities, stats, plan)

    def evaluate(
        self,
        t: float | Float[Array, "*#batch"],
        x: Float[Array, "batch *shape"],
        step_index: int | float | Real[Array, "*#batch"],
        condition: ConditionLike | None = None,
        depth: Depth | tuple[int, ...] = "full",
        length: Plan | None = None,
        key: Key[Array, "*#batch"] | None = None,
        tolerance: float | Float[Array, ""] | None = None,
        guidance: Guidance | None = None,
        hidden: int | None = None,
    ) -> tuple[Float[Array, "*batch_shape"], LengthStats]:
        """Return what a call returns, or `velocities` for a tuple, and what the length ODE took.

        A length solve that runs out of steps is counted as a failure, not raised: its example
        continues from where it got to. With a tuple and a tolerance, an example that has stopped
        has the velocity where it did at all depths that follow. With a tuple on an `anytime`
        network with a `projector`, the statistics have the hidden state at the depth `hidden`.
        """
        full = isinstance(depth, str) and depth == "full"
        depth = np.asarray(depth) if isinstance(depth, list) else depth
        blocks: LengthDepth = check_depth(self.depth if full else depth, self.depths)
        if tolerance is not None:
            check_tolerance(self.anytime, blocks, tolerance)
        if isinstance(blocks, int) and tolerance is not None:
            depths = tuple(d for d in self.depths if d <= blocks)
            found, stats = self.evaluate(
                t, x, step_index, condition, depths, length, key, tolerance, guidance
            )
            return found[-1], stats
        if isinstance(blocks, tuple):
            check_rising(blocks)
            if not self.anytime:
                inputs = {"length": length, "key": key, "guidance": guidance}
                one = partial(self.evaluate, t, x, step_index, condition, **inputs)
                velocities, stats = zip(*(one(depth=d) for d in blocks), strict=True)
                return jnp.stack(velocities), jax.tree.map(lambda *each: sum(each), *stats)
        x, condition = as_batch(self, x, condition)
        t = one_per_example("t", t, len(x))
        step_index = one_per_example("step_index", step_index, len(x))
        if not isinstance(blocks, tuple | str):
            blocks = one_per_example("depth", blocks, len(x))
        condition = self.null(len(x)) if learns_null_only(self.condition_type) else condition
        spread = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), x.shape[:1])
        if key is not None:
            key = batch_key(key, len(x))
            key = key if key.ndim else jax.random.split(key, len(x))
        told = jax.tree.map(spread, as_guidance(self.condition_type, guidance))
        batch = (spread(t), x, spread(step_index), condition, key, told)
        order = np.arange(len(x))
        if isinstance(blocks, np.ndarray):  # the deepest first: then no hidden state is reordered
            order = np.argsort(-blocks, kind="stable")
            batch, blocks = take_rows(batch, order), blocks[order]
        t, x, step_index, condition, keys, told = batch
        length = self.length if length is None else length
        inputs = Inputs(t, x, step_index, condition, blocks, length, keys, tolerance, told, hidden)
        velocity, stats = self.velocity(inputs)
        if tolerance is not None:
            stats = checked_tolerance(stats)
        if isinstance(blocks, np.ndarray):
            return take_rows((velocity, stats), np.argsort(order))
        return velocity, stats


def has_projector(network: Any) -> bool:
    """Whether a network, or its config, has a head for `SelfAlignment`, and gives its hidden state.

    Such a network has an attribute `projector`, a module that maps hidden states (batch, *tokens,
    width) to others of that shape, and passes `Inputs.hidden` on to `integrate_length`.
    """
    projector = getattr(network, "projector", None)
    return projector is not None and projector is not False


def hidden_state(stats: LengthStats) -> Float[Array, "batch *tokens width"]:
    """Return the hidden state that was asked for; an InputError if the network did not keep it."""
    if stats.hidden is None:
        raise InputError(
            "this network has a projector but keeps no hidden state: its velocity must pass "
            "inputs.hidden to odelt.integrate_length"
        )
    return stats.hidden


def predict_hidden(network: Any, stats: LengthStats) -> Float[Array, "batch *tokens width"]:
    """Return what a network's projector makes of the hidden state that was asked for."""
    return network.projector(hidden_state(stats))


def index_of_step(length: Float[Array, "*any"], flow_index: int) -> Float[Array, "*any"]:
    """Return the step index of a step, `min(-log2(length), flow_index)`, for a length of 0 too."""
    return -jnp.log2(jnp.maximum(length, 2.0**-flow_index))


def checked_tolerance(stats: LengthStats) -> LengthStats:
    """Return statistics as others are; an InputError if the network ignored a tolerance."""
    if not stats.by_tolerance:
        raise InputError(
            "this network ignores a tolerance of its depth: its velocity must pass "
            "inputs.tolerance to odelt.integrate_length"
        )
    return dataclasses.replace(stats, by_tolerance=False)


def as_batch(
    network: Network, x: Any, condition: ConditionLike | None
) -> tuple[Float[Array, "batch *shape"], Condition | None]:
    """Return states and conditions as arrays, see `as_states` and `as_condition`.

    Raises:
        InputError: they do not fit the network, see `check_condition`.
    """
    x, condition = as_states(x), as_condition(network.condition_type, condition)
    if x.ndim == 0 or x.shape[1:] != network.shape:
        wanted = ", ".join(map(str, network.shape))
        raise InputError(f"states must have shape (batch, {wanted}); got {x.shape}")
    check_condition(network.condition_type, condition, len(x))
    return x, condition


def raise_failures_of_length(
    velocity: Float[Array, "batch *shape"], stats: LengthStats, plan: Plan
) -> Float[Array, "batch *shape"]:
    """Return `velocity`, which raises a RuntimeError when computed if a length solve failed."""
    if isinstance(plan, Adaptive):
        return eqx.error_if(velocity, stats.failures > 0, plan.failure("length"))
    return velocity
