"""What a network is evaluated on: the arguments of a call, and the checks of each."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.condition import Condition, Guidance
from odelt_eqx.errors import InputError
from odelt_eqx.ode.length import LengthDepth
from odelt_eqx.ode.plan import Plan

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


def check_depth(depth: Depth | tuple[int, ...], depths: tuple[int, ...]) -> Any:
    """Return `depth` as integers if all of it is among `depths`, a scalar as an int.

    Raises:
        InputError: it is not; the message lists the depths.
        RuntimeError: a traced depth is not.
    """
    listed = ", ".join(map(str, depths))
    if isinstance(depth, Tracer):
        known = jnp.isin(depth, jnp.asarray(depths))
        checked = eqx.error_if(depth, ~known, f"depth must be one of {listed} (in blocks)")
        return jnp.asarray(checked, jnp.int32)
    if isinstance(depth, str):
        if depth not in ("full", "plain"):
            raise InputError(f"depth must be one of {listed} (in blocks), full, plain; got {depth}")
        return depth
    wrong = sorted(set(np.ravel(np.asarray(depth)).tolist()) - set(depths))
    if wrong:
        raise InputError(f"depth must be one of {listed} (in blocks); got {wrong[0]}")
    if isinstance(depth, tuple):
        return tuple(map(int, depth))
    if np.ndim(depth) == 0:
        return int(depth)
    return (jnp if isinstance(depth, Array) else np).asarray(depth, np.int32)


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


def is_real(value: Any) -> bool:
    """Whether a value is a real number, or an array or a list of some."""
    if isinstance(value, Array | float):
        return True
    try:
        return np.asarray(value).dtype.kind in "biufV"  # V: bfloat16
    except ValueError:  # rows of several lengths
        return False


def one_per_example(name: str, value: Any, batch_size: int) -> Any:
    """Return a value that is one for all, or has one for each example.

    One of shape (1,), which is for all, becomes an array of one per example, of NumPy unless it is
    one of JAX's.

    Raises:
        InputError: it is no number or has another shape.
    """
    if not is_real(value):
        raise InputError(f"{name} must be a number; got {value!r}")
    if np.shape(value) not in ((), (1,), (batch_size,)):
        raise InputError(
            f"{name} must be a number or have shape ({batch_size},); got {np.shape(value)}"
        )
    if np.shape(value) != (1,):
        return value
    broadcast = jnp.broadcast_to if isinstance(value, Array) else np.broadcast_to
    return broadcast(value, (batch_size,))


def as_states(x: Any) -> Float[Array, "batch *shape"]:
    """Return states as an array; integers as float32, since layers compute in the dtype of `x`.

    Raises:
        InputError: they are no array of numbers.
    """
    try:
        x = x if isinstance(x, Array) else jnp.asarray(x)
    except (TypeError, ValueError):
        raise InputError(f"states must be numbers; got {x!r}") from None
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


def batch_key(key: Any, batch_size: int) -> Key[Array, "*batch"]:
    """Return one key, of shape (), or a key for each example, see `typed_key`.

    Raises:
        InputError: there is another number of keys.
    """
    key = typed_key(key)
    if key.shape == (batch_size,):
        return key
    if key.shape not in ((), (1,)):
        raise InputError(f"key must be one key or have shape ({batch_size},); got {key.shape}")
    return key.reshape(())
