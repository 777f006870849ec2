"""What the rest of the package knows of a network.

Objectives, samplers, likelihood, training and evaluation see a `Network`: a velocity field whose
depth can be chosen. How it is built is its own business; `odelt_eqx.nn` has two.
"""

import abc
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, Real

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
from odelt_eqx.ode.length import LengthDepth, LengthStats, check_rising, take_rows
from odelt_eqx.ode.plan import Adaptive, Plan

Depth = int | Literal["full", "plain"] | Int[np.ndarray, " batch"] | Int[Array, " batch"]


class Inputs(eqx.Module):
    """What a network is evaluated on: the arguments of a call, checked, one value per example.

    Args:
        guidance: that of each example where the network is told, or None.
        depth: as for a call, but not "full". A tuple of rising depths asks for the velocity at each
            of them from one integration; only an `anytime` network is given one.
        keys: dropout keys, or None for no dropout.
        tolerance: with a tuple of depths, where an example may stop, see `integrate_length`.
        hidden: with a tuple of depths, the depth whose hidden state is asked for, or None; only a
            network with a `projector` is asked, see `has_projector`.
    """

    t: Float[Array, " batch"]
    x: Float[Array, "batch *shape"]
    step_index: Float[Array, " batch"]
    condition: Condition | None
    depth: LengthDepth
    length: Plan
    keys: Key[Array, " batch"] | None = None
    tolerance: float | Float[Array, ""] | None = None
    guidance: Guidance | None = None
    hidden: int | None = None


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
        x = as_states(x)
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
        condition = as_condition(self.condition_type, condition)
        check_batch(self, x, condition)
        check_per_example(x, t=t, step_index=step_index)
        if not isinstance(blocks, tuple | str):
            check_per_example(x, depth=blocks)
            blocks = one_per_example(blocks, len(x))
        condition = self.null(len(x)) if learns_null_only(self.condition_type) else condition
        spread = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), x.shape[:1])
        keys = None if key is None else _split_key(typed_key(key), x)
        told = jax.tree.map(spread, as_guidance(self.condition_type, guidance))
        batch = (spread(t), x, spread(step_index), condition, keys, told)
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


def check_depth(depth: Depth | tuple[int, ...], depths: tuple[int, ...]) -> Any:
    """Return `depth` if all of it is among `depths`, an integer scalar as an int.

    Raises:
        InputError: it is not; the message lists the depths.
        RuntimeError: a traced depth is not.
    """
    listed = ", ".join(map(str, depths))
    if isinstance(depth, Tracer):
        known = jnp.isin(depth, jnp.asarray(depths))
        return eqx.error_if(depth, ~known, f"depth must be one of {listed} (in blocks)")
    if isinstance(depth, str):
        if depth not in ("full", "plain"):
            raise InputError(f"depth must be one of {listed} (in blocks), full, plain; got {depth}")
        return depth
    wrong = sorted(set(np.ravel(np.asarray(depth)).tolist()) - set(depths))
    if wrong:
        raise InputError(f"depth must be one of {listed} (in blocks); got {wrong[0]}")
    return depth if isinstance(depth, tuple) or np.ndim(depth) else int(depth)


def check_tolerance(anytime: bool, depth: Any, tolerance: float | Array) -> None:
    """Raise an InputError if a network's depth cannot be chosen by this tolerance."""
    if not isinstance(tolerance, Tracer) and not tolerance > 0:
        raise InputError(f"a tolerance of the depth must be positive; got {tolerance}")
    if not anytime:
        raise InputError(
            "this network is told its depth beforehand, so a tolerance cannot choose it: train one "
            "with --model.length-embedding none or edge"
        )
    if not isinstance(depth, int | tuple):
        raise InputError(
            f"a tolerance chooses the depth of each example up to one number for all; got {depth}"
        )


def checked_tolerance(stats: LengthStats) -> LengthStats:
    """Return statistics as others are; an InputError if the network ignored a tolerance."""
    if not stats.by_tolerance:
        raise InputError(
            "this network ignores a tolerance of its depth: its velocity must pass "
            "inputs.tolerance to odelt.integrate_length"
        )
    return dataclasses.replace(stats, by_tolerance=False)


def check_batch(network: Network, x: Array, condition: Condition | None) -> None:
    """Raise an InputError unless states and conditions fit the network, see `check_condition`."""
    if x.ndim == 0 or x.shape[1:] != network.shape:
        wanted = ", ".join(map(str, network.shape))
        raise InputError(f"states must have shape (batch, {wanted}); got {x.shape}")
    check_condition(network.condition_type, condition, len(x))


def check_per_example(x: Float[Array, "batch *shape"], **values: Any) -> None:
    """Raise an InputError unless each value is one for all, or has one for each example."""
    for name, value in values.items():
        if np.shape(value) not in ((), (1,), x.shape[:1]):
            raise InputError(
                f"{name} must be a number or have shape {x.shape[:1]}; got {np.shape(value)}"
            )


def one_per_example(value: Any, batch_size: int) -> Any:
    """Return a value of shape (1,), which is one for all, as an array of one per example.

    Other values are returned as they are. Only an array of JAX gives one of JAX's.
    """
    if np.shape(value) != (1,):
        return value
    broadcast = jnp.broadcast_to if isinstance(value, Array) else np.broadcast_to
    return broadcast(value, (batch_size,))


def as_states(x: Any) -> Float[Array, "batch *shape"]:
    """Return states as an array; integers as float32, since layers compute in the dtype of `x`."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def typed_key(key: Any) -> Key[Array, "*keys"]:
    """Return a key as one of JAX's typed keys, also for the raw ones of `jax.random.PRNGKey`.

    Raises:
        InputError: it is no key.
    """
    if isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    raw = isinstance(key, Array | np.ndarray) and key.dtype == jnp.uint32
    if raw and key.shape[-1:] == jax.random.PRNGKey(0).shape:
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise InputError(f"key must be one of JAX's typed keys, like jax.random.key(0); got {key}")


def one_key(key: Any) -> Key[Array, ""]:
    """Return the only key, see `typed_key`; an InputError if there are several."""
    key = typed_key(key)
    if key.shape not in ((), (1,)):
        raise InputError(f"key must be one key; got keys of shape {key.shape}")
    return key.reshape(())


def _split_key(key: Key[Array, "*keys"], x: Float[Array, "batch *shape"]) -> Key[Array, " batch"]:
    """Return a dropout key for each example."""
    if key.shape == x.shape[:1]:
        return key
    if key.shape not in ((), (1,)):
        raise InputError(f"key must be one key or have shape {x.shape[:1]}; got {key.shape}")
    return jax.random.split(key.reshape(()), len(x))


def raise_failures_of_length(
    velocity: Float[Array, "batch *shape"], stats: LengthStats, plan: Plan
) -> Float[Array, "batch *shape"]:
    """Return `velocity`, which raises a RuntimeError when computed if a length solve failed."""
    if isinstance(plan, Adaptive):
        return eqx.error_if(velocity, stats.failures > 0, plan.failure("length"))
    return velocity
