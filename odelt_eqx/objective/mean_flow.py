"""Mean flow: the average velocity over a step, from an identity instead of a simulation."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition, Guidance, is_told_guidance
from odelt_eqx.errors import InputError, check_range
from odelt_eqx.network import Network, index_of_step
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    X,
    share,
)
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import TimeName, per_example, times_from
from odelt_eqx.ode import FixedSteps

TangentName = Literal["path", "network"]


class MeanFlowDraws(eqx.Module):
    """Draws of `MeanFlow`.

    Args:
        end: what the ends of the first examples' steps are made of, as `flow.time` their starts.
        flow: dropout of conditions, times and noise of the whole batch.
        guidance: of the whole batch, where the network is told.
    """

    end: Float[Array, " steps"]
    flow: FlowDraws
    guidance: Guidance | None = None


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

    Improved mean flow (arXiv 2512.02012) takes the derivative along the network's own velocity
    $\tilde v$, which is $u$ at $D = 0$, and not along $v$, which differs between the paths through
    a point. Then it is a loss of velocities: the prediction $u - D \, du/dt$, its derivative a
    constant, is a function of the point alone, and regresses on $v$. The network may be told the
    guidance as well: for a weight $w$, where that acts, the target has $v + (1 - 1/w)(\tilde v_w -
    \tilde v_\emptyset)$ in place of $v$, so that $\tilde v_w$ becomes the guided velocity. Differs
    from the paper: what the network is told is added to the embedding of the time and makes no
    tokens, and no second head predicts the velocity.

    Args:
        every: one example in `every` is a step, the others have `D = 0`.
        times: how both ends are drawn: "uniform", "grid", "logit-normal".
        time_shift: see `FlowMatching`.
        class_dropout: share of the examples that lose their condition; 1 trains without any.
        power: weighting of errors, see `Targets`.
        tangent: along what the derivative is taken: $v$ of the "path", or the velocity of the
            "network", which takes one more evaluation of the steps.
        max_guidance: weights of guidance are drawn between 1 and this, log-uniformly, each with
            times between which it acts, and the network is told them: half of the starts are 0, the
            others in the first half of the time, and the ends likewise. It takes two more
            evaluations of the batch. None: no guidance.

    Raises:
        InputError: a name is unknown or the numbers do not fit together.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "data"
    every: int = 4
    times: TimeName = "logit-normal"
    time_shift: float = 1.0
    class_dropout: float = 0.1
    power: float = 1.0
    tangent: TangentName = "path"
    max_guidance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_guidance", above=1)
        if self.max_guidance is not None and self.learned != "both":
            raise InputError(
                "guidance needs a network that learns conditions and none: with max_guidance, "
                f"class_dropout must lie between 0 and 1; got {self.class_dropout:g}"
            )

    @property
    def flow(self) -> FlowMatching:
        """Flow matching with the same times."""
        return FlowMatching(self.class_dropout, self.times, self.time_shift)

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> MeanFlowDraws:
        """Draw flow matching for all, and a second time for the steps: the later one ends them."""
        self.check_network(network)
        plan = network.length
        if not (isinstance(plan, FixedSteps) and plan.solver == "euler"):
            raise InputError(
                "mean flow takes a forward derivative, which works only through fixed Euler steps "
                f"of length; got {plan}"
            )
        if is_told_guidance(network.condition_type) != (self.max_guidance is not None):
            raise InputError(
                f"max_guidance is {self.max_guidance}, so it must be that of the network as well"
            )
        steps = share(batch_size, self.every)
        guidance_key = None
        if self.max_guidance is not None:
            key, guidance_key = jax.random.split(key)
        end_key, flow_key = jax.random.split(key)
        flow = self.flow.draw(flow_key, batch_size, network, when)
        one, other = flow.time[:steps], jax.random.uniform(end_key, (steps,))
        start = flow.time.at[:steps].set(jnp.minimum(one, other))
        flow = dataclasses.replace(flow, time=start)
        guidance = None
        if guidance_key is not None:
            weight, begin, end = jax.random.uniform(guidance_key, (3, batch_size))
            begin, end = jnp.maximum(begin - 0.5, 0.0), jnp.minimum(0.5 + end, 1.0)
            drawn = Guidance(self.max_guidance**weight, begin, end)
            guidance = jax.tree.map(partial(jnp.where, flow.drop), Guidance(), drawn)
        return MeanFlowDraws(jnp.maximum(one, other), flow, guidance)

    def targets(
        self, draws: MeanFlowDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return flow targets, the first of them replaced by those of steps."""
        flow_index, n = networks.student.network.flow_index, len(draws.end)
        flow = self.flow.targets(draws.flow, data, condition, networks)
        flow = dataclasses.replace(flow, guidance=draws.guidance)
        own = None
        if draws.guidance is not None:
            goal, own = _guided(flow, draws.guidance, networks)
            flow = dataclasses.replace(flow, velocity=goal)
        steps = jax.tree.map(lambda leaf: leaf[:n] if eqx.is_array(leaf) else leaf, flow)
        t, x_t = steps.t, steps.x_t
        step = times_from(draws.end, self.times, 2**flow_index, self.time_shift) - t
        tangent = steps.velocity
        if self.tangent == "network":
            tangent = _own_velocity(steps, networks) if own is None else own[:n]

        def mean_velocity(t: Array, x: Array, step: Array) -> Array:
            index = index_of_step(step, flow_index)
            return networks.student(t, x, index, steps.condition, guidance=steps.told)

        velocity = mean_flow_identity(mean_velocity, t, x_t, step, steps.velocity, tangent)
        index = index_of_step(step, flow_index)
        return dataclasses.replace(
            flow,
            step_index=flow.step_index.astype(jnp.float32).at[:n].set(index),
            velocity=jnp.concatenate([velocity, flow.velocity[n:]]),
            power=jnp.full_like(flow.t, self.power),
        )


def _own_velocity(inputs: Targets, networks: Networks) -> X:
    """Return the velocity of the trained network at what targets are for."""
    given = (inputs.t, inputs.x_t, inputs.step_index, inputs.condition)
    return networks.student(*given, guidance=inputs.told)


def _guided(flow: Targets, guidance: Guidance, networks: Networks) -> tuple[X, X]:
    """Return what the guided velocity regresses on, and what it is now."""
    own = _own_velocity(flow, networks)
    null = networks.student(flow.t, flow.x_t, flow.step_index, flow.condition, guidance=0.0)
    strength = jnp.where(guidance.acts(flow.t), 1 - 1 / jnp.asarray(guidance.weight), 0)
    return flow.velocity + per_example(strength, own) * (own - null), own


def mean_flow_identity(
    mean_velocity: Callable[[Array, Array, Array], Array],
    t: Float[Array, " batch"],
    x_t: X,
    step: Float[Array, " batch"],
    velocity: X,
    tangent: X | None = None,
) -> X:
    r"""Return $v + D (\partial_t + \tilde v \cdot \partial_x - \partial_D) u$, by a derivative.

    `mean_velocity` is $u(t, x, D)$, `step` is $D$, `velocity` is $v$ at `x_t`, and `tangent` is
    $\tilde v$, by default $v$.
    """
    ones, tangent = jnp.ones_like(t), velocity if tangent is None else tangent
    _, change = jax.jvp(mean_velocity, (t, x_t, step), (ones, tangent, -ones))
    return velocity + per_example(step, x_t) * change
