"""Mean flow: the average velocity over a step, from an identity instead of a simulation."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError
from odelt_eqx.network import Condition, Network, index_of_step
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    X,
    share,
    split,
)
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import TimeName, per_example, times_from
from odelt_eqx.ode import FixedSteps


class MeanFlowDraws(eqx.Module):
    """Draws of `MeanFlow`.

    Args:
        end: what the ends of the first examples' steps are made of, as `flow.time` their starts.
        flow: dropout of conditions, times and noise of the whole batch.
    """

    end: Float[Array, " steps"]
    flow: FlowDraws


@dataclasses.dataclass(frozen=True)
class MeanFlow(Objective):
    r"""One step should have the mean velocity of the flow over it.

    For $x_s = x_t + D u$ with $D = s - t$, the mean velocity obeys
    $u = v + D \frac{du}{dt}$, the derivative along the flow with $s$ held fixed. For the first
    `1 / every` of the batch, `t < s` are two draws and the target is the right-hand side: $v$ of
    the straight path and the derivative of the trained network, as a constant. The rest is flow
    matching, $D = 0$. Source: arXiv 2505.13447, with time reversed and without its guidance during
    training; `every` and `power` are its best.

    The network is given a step index that is a real number: $-\log_2 D$, or the flow field's if
    that is less. So `T` equal steps ask for what they ask of a shortcut model.

    Args:
        every: one example in `every` is a step, the others have `D = 0`.
        times: how both ends are drawn: "uniform", "grid", "logit-normal".
        time_shift: see `FlowMatching`.
        class_dropout: share of the examples that lose their condition; 1 trains without any.
        power: weighting of errors, see `Targets`.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "data"
    every: int = 4
    times: TimeName = "logit-normal"
    time_shift: float = 1.0
    class_dropout: float = 0.1
    power: float = 1.0

    @property
    def flow(self) -> FlowMatching:
        """Flow matching with the same times."""
        return FlowMatching(self.class_dropout, self.times, self.time_shift)

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> MeanFlowDraws:
        """Draw flow matching for all, and a second time for the steps: the later one ends them."""
        plan = network.length
        if not (isinstance(plan, FixedSteps) and plan.solver == "euler"):
            raise InputError(
                "mean flow takes a forward derivative, which works only through fixed Euler steps "
                f"of length; got {plan}"
            )
        steps = share(batch_size, self.every)
        end_key, flow_key = jax.random.split(key)
        flow = self.flow.draw(flow_key, batch_size, network, when)
        one, other = flow.time[:steps], jax.random.uniform(end_key, (steps,))
        start = flow.time.at[:steps].set(jnp.minimum(one, other))
        return MeanFlowDraws(jnp.maximum(one, other), dataclasses.replace(flow, time=start))

    def targets(
        self, draws: MeanFlowDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return flow targets, the first of them replaced by those of steps."""
        flow_index, n = networks.student.network.flow_index, len(draws.end)
        flow = self.flow.targets(draws.flow, data, condition, networks)
        t, x_t, (condition, _) = flow.t[:n], flow.x_t[:n], split(flow.condition, n)
        step = times_from(draws.end, self.times, 2**flow_index, self.time_shift) - t

        def mean_velocity(t: Array, x: Array, step: Array) -> Array:
            return networks.student(t, x, index_of_step(step, flow_index), condition)

        velocity = mean_flow_identity(mean_velocity, t, x_t, step, flow.velocity[:n])
        index = index_of_step(step, flow_index)
        return dataclasses.replace(
            flow,
            step_index=flow.step_index.astype(jnp.float32).at[:n].set(index),
            velocity=jnp.concatenate([velocity, flow.velocity[n:]]),
            power=jnp.full_like(flow.t, self.power),
        )


def mean_flow_identity(
    mean_velocity: Callable[[Array, Array, Array], Array],
    t: Float[Array, " batch"],
    x_t: X,
    step: Float[Array, " batch"],
    velocity: X,
) -> X:
    r"""Return $v + D (\partial_t + v \cdot \partial_x - \partial_D) u$, by one forward derivative.

    `mean_velocity` is $u(t, x, D)$, `step` is $D$, and `velocity` is $v$ at `x_t`.
    """
    ones = jnp.ones_like(t)
    _, change = jax.jvp(mean_velocity, (t, x_t, step), (ones, velocity, -ones))
    return velocity + per_example(step, x_t) * change
