r"""Averages of the weights by a power of time, and one of any width from snapshots of two.

The average after $t$ steps is $\frac{\gamma + 1}{t^{\gamma + 1}} \int_0^t \tau^\gamma
\theta(\tau) d\tau$, with $\theta$ constant during a step: it forgets the first weights, and looks
as far back as the run is long. Its width is the standard deviation of its profile over $t$,
$\sigma = (\gamma + 1)^{1/2} (\gamma + 2)^{-1} (\gamma + 3)^{-1/2}$. Source: arXiv 2312.02696,
section 3 and appendix C.
"""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from odelt_eqx.config import WIDEST
from odelt_eqx.errors import InputError


def exponent_of(width: float) -> float:
    r"""Return the power $\gamma$ of the average of this width.

    It is the largest root of $\sigma^2 (\gamma + 2)^2 (\gamma + 3) = \gamma + 1$.

    Raises:
        InputError: there is none, or it is negative.
    """
    if not 0 < width <= WIDEST:
        raise InputError(f"the width of an average must lie in (0, {WIDEST:.4f}]; got {width}")
    steep = width**-2
    return float(np.roots([1, 7, 16 - steep, 12 - steep]).real.max())


class PowerAverage(eqx.Module):
    """The average of this width of the weights of a network.

    Args:
        network: the average, in the structure of the network; zero before the first step.
        width: standard deviation of the steps that count, as a share of all that were taken.
    """

    network: PyTree
    width: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        exponent_of(self.width)

    def update(self, model: PyTree, trained: PyTree[bool], taken: Int[Array, ""]) -> "PowerAverage":
        """Return the average after a step.

        Args:
            model: the network after it.
            trained: which of its leaves are averaged; the others are taken over.
            taken: how many steps were taken, with this one.
        """
        power = exponent_of(self.width) + 1
        gain = -jnp.expm1(power * jnp.log1p(-1 / taken.astype(jnp.float32)))
        weights, rest = eqx.partition(model, trained)
        move = lambda old, new: old + gain * (new - old)
        average = jax.tree.map(move, eqx.filter(self.network, trained), weights)
        return PowerAverage(eqx.combine(average, rest), self.width)


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a snapshot of averages holds.

    Args:
        taken: steps that had been taken.
        widths: of the averages, in their order.
    """

    taken: int
    widths: tuple[float, ...]


def combine(
    snapshots: Sequence[Profile], width: float
) -> tuple[Float[np.ndarray, "snapshots widths"], float]:
    """Return how much of each average the one of another width holds, and the error.

    The error is that of the profile, relative to it, both in the root mean square over the steps.
    It is the least that there is for these averages. They all have the same widths.

    Args:
        snapshots: in the order of their steps; what is asked for ends where the last one does.
        width: of the average that is asked for.
    """
    at, power = np.array([(s.taken, exponent_of(w)) for s in snapshots for w in s.widths]).T
    at, power = np.append(at, snapshots[-1].taken), np.append(power, exponent_of(width))
    same = (at[:-1] == at[-1]) & (power[:-1] == power[-1])
    if same.any():
        return same.reshape(len(snapshots), -1).astype(float), 0.0
    products = _product(power[:, None], at[:, None], power, at)
    norm = np.sqrt(np.diag(products))
    products = products / norm / norm[:, None]
    gram, wanted = products[:-1, :-1], products[:-1, -1]
    shares = np.linalg.lstsq(gram, wanted, rcond=None)[0]
    error = np.sqrt(max(0.0, 1 - 2 * wanted @ shares + shares @ gram @ shares))
    return (shares * norm[-1] / norm[:-1]).reshape(len(snapshots), -1), float(error)


def _product(
    power: Float[np.ndarray, "*#n"],
    at: Float[np.ndarray, "*#n"],
    other_power: Float[np.ndarray, "*#n"],
    other_at: Float[np.ndarray, "*#n"],
) -> Float[np.ndarray, "*n"]:
    """Return the integral over time of the product of two profiles, each of integral 1."""
    both = np.minimum(at, other_at)
    shares = (both / at) ** (power + 1) * (both / other_at) ** (other_power + 1)
    return (power + 1) * (other_power + 1) / (power + other_power + 1) * shares / both
