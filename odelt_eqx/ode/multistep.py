r"""Adams-Bashforth methods: high order for one evaluation of the field a step.

A step integrates the polynomial through the last few slopes. Its weights follow from where these
were evaluated, so steps may have any lengths (Hairer, Norsett and Wanner, *Solving Ordinary
Differential Equations I*, section III.5).
"""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


class History(eqx.Module):
    """The slopes of the last steps, the newest first: `taken` of them are known."""

    times: Float[Array, " order"]
    slopes: PyTree
    taken: Int[Array, ""]


def adams_weights(
    nodes: Float[Array, " order"], end: Float[Array, ""], known: Int[Array, ""]
) -> Float[Array, " order"]:
    r"""Return the weights of slopes at `nodes` in the mean slope over [0, end].

    They integrate every polynomial of a lower degree than `known`, the number of nodes that count:
    $\sum_j w_j a_j^i = \mathrm{end}^i / (i + 1)$. The others have weight 0.
    """
    index = jnp.arange(len(nodes))
    scaled = nodes / end
    used = index < known
    powers = jnp.stack([scaled**i for i in range(len(nodes))])
    moments = jnp.where(used[:, None] & used[None], powers, jnp.eye(len(nodes)))
    return jnp.linalg.solve(moments, jnp.where(used, 1 / (index + 1), 0.0))


class AdamsInterpolation(diffrax.AbstractLocalInterpolation):
    """The integral of the polynomial that a step integrates, up to any time within it."""

    t0: Any
    t1: Any
    y0: PyTree
    increments: PyTree
    nodes: Float[Array, " order"]
    known: Int[Array, ""]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> PyTree:
        """Return the state at `t0`, or the change from `t0` to `t1`."""
        del left
        if t1 is not None:
            change = lambda a, b: b - a
            return jax.tree.map(change, self.evaluate(t0), self.evaluate(t1))
        elapsed = t0 - self.t0
        share = elapsed / (self.t1 - self.t0)
        weights = adams_weights(self.nodes, jnp.where(elapsed == 0, 1.0, elapsed), self.known)
        return advance(self.y0, self.increments, share * weights)


def advance(y: PyTree, increments: PyTree, weights: Float[Array, " order"]) -> PyTree:
    """Return a state plus the weighted sum of increments."""
    return jax.tree.map(lambda a, k: a + jnp.tensordot(weights, k, axes=1), y, increments)


class AdamsBashforth(diffrax.AbstractSolver[History]):
    """The Adams-Bashforth method of an order of 2 or 3, for steps of any lengths.

    The first step is one of Euler's. Where the order is 3, its error is corrected, to second order,
    once the slope at its end is known: without another evaluation the order is that of the method.

    Args:
        steps: the order, which is the number of slopes that a step uses.
    """

    steps: int = eqx.field(static=True)
    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Any] = AdamsInterpolation

    def order(self, terms: Any) -> int:
        """Return the order of the method."""
        del terms
        return self.steps

    def init(self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any) -> History:
        """Return a history of no known slope."""
        del terms, t1, args
        times = (
            t0 - 1.0 - jnp.arange(self.steps, dtype=jnp.float32)
        )  # anywhere else: their weights are 0
        slopes = jax.tree.map(lambda y: jnp.zeros((self.steps, *y.shape), y.dtype), y0)
        return History(times, slopes, jnp.zeros((), jnp.int32))

    def func(self, terms: Any, t0: Any, y0: PyTree, args: Any) -> PyTree:
        """Return the slope."""
        return terms.vf(t0, y0, args)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: PyTree,
        args: Any,
        solver_state: History,
        made_jump: Any,
    ) -> tuple[PyTree, None, dict[str, Any], History, Any]:
        """Evaluate the field once and integrate the polynomial through the known slopes."""
        del made_jump
        push = lambda new, old: jnp.concatenate([new[None], old[:-1]])
        slopes = jax.tree.map(push, terms.vf(t0, y0, args), solver_state.slopes)
        times = push(t0, solver_state.times)
        taken = jnp.minimum(solver_state.taken + 1, self.steps)
        control = terms.contr(t0, t1)
        increments = jax.vmap(lambda slope: terms.prod(slope, control))(slopes)
        if self.steps == 3:
            first_length = jnp.where(taken == 2, times[0] - times[1], 0.0)
            trapezoid = jnp.array([0.5, -0.5, 0.0]) * first_length / (t1 - t0)
            y0 = advance(y0, increments, trapezoid)
        weights = adams_weights(times - t0, t1 - t0, taken)
        dense = {"y0": y0, "increments": increments, "nodes": times - t0, "known": taken}
        y1 = advance(y0, increments, weights)
        return y1, None, dense, History(times, slopes, taken), diffrax.RESULTS.successful
