"""Where a flow passes between noise and data, and when it is looked at."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odelt_eqx.errors import InputError
from odelt_eqx.ode.grid import grid_point

PathName = Literal["straight", "trigonometric"]
TimeName = Literal["uniform", "grid", "logit-normal"]

FLOOR = 1e-5
"""The share of the noise that the reference leaves in the data of most training types."""


def interpolate(
    t: Float[Array, " batch"],
    noise: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
    path: PathName = "straight",
    sigma_min: float = 0.0,
) -> Float[Array, "batch height width channels"]:
    r"""Return the point of each path at its time.

    "straight": $(1 - (1 - \sigma_{min}) t) x_0 + t x_1$ (arXiv 2210.02747, equation 22);
    "trigonometric": $\cos(\pi t / 2) x_0 + \sin(\pi t / 2) x_1$, whose variance stays one where
    noise and data have variance one (arXiv 2209.15571).

    Args:
        t: times.
        noise: where the paths start.
        images: where they end.
        path: name of the path.
        sigma_min: share of the noise that is left at the end of a straight path.
    """
    t = per_image(t)
    if path == "trigonometric":
        angle = jnp.pi / 2 * t
        return jnp.cos(angle) * noise + jnp.sin(angle) * images
    return noise + t * (images - (1 - sigma_min) * noise)


def times_from(
    uniform: Float[Array, " batch"], times: TimeName, denoise_timesteps: int
) -> Float[Array, " batch"]:
    """Return times in [0, 1) of the named distribution, rising with the uniform draws.

    Args:
        uniform: draws in [0, 1).
        times: "uniform"; "grid", the multiples of `1 / denoise_timesteps`; "logit-normal", the
            logistic function of standard normal draws (arXiv 2403.03206).
        denoise_timesteps: points of the grid.
    """
    if times == "grid":
        return on_grid(uniform, denoise_timesteps)
    return jax.vmap(partial(grid_point, times))(uniform)


def on_grid(
    uniform: Float[Array, " batch"], points: int | Float[Array, "*#batch"]
) -> Float[Array, " batch"]:
    """Return `uniform` rounded down to a multiple of `1 / points`."""
    return jnp.floor(points * uniform) / points


def per_image(values: Float[Array, " batch"]) -> Float[Array, "batch 1 1 1"]:
    """Return one value per example in the shape that multiplies images."""
    return values[:, None, None, None]


def check_name(field: str, name: str, kind: object) -> None:
    """Raise an InputError unless `name` is one of the names in `kind`, a Literal."""
    known = get_args(kind)
    if name not in known:
        raise InputError(f"{field} must be one of {', '.join(known)}; got {name!r}")
