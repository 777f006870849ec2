"""Mean flow: the average velocity over a step, from an identity instead of a simulation."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import Networks, Objective, Targets, TaughtBy, TrainingTime, share
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import TimeName, per_image, times_from
from odelt_eqx.ode.plan import FixedSteps


class MeanFlowDraws(eqx.Module):
    """Draws of `MeanFlow`.

    Args:
        end: for the first examples, what the end of the step is made of, as `flow.time` its start.
        flow: label dropout, times and noise of the whole batch.
    """

    end: Float[Array, " steps"]
    flow: FlowDraws


@dataclasses.dataclass(frozen=True)
class MeanFlow(Objective):
    r"""One step should have the mean velocity of the flow over it.

    For $x_s = x_t + D u$ with $D = s - t$, the mean velocity obeys
    $u = v + D \frac{du}{dt}$, the derivative along the flow with $s$ held fixed. For the first
    `1 / every` of the batch, `t < s` are two draws and the target is the right-hand side: $v$ of
    the straight path and the derivative of the network that is trained, as a constant. The rest
    is flow matching, $D = 0$. Source: arXiv 2505.13447, with time reversed and without its
    guidance during training; `every` and `power` are its best.

    The network is told a step index as a real number: $-\log_2 D$, or the flow field's if that is
    less. So `T` equal steps ask for what they ask of a shortcut model.

    Args:
        every: one example in `every` is a step, the others have `D = 0`.
        times: how both ends are drawn: "uniform", "grid", "logit-normal".
        class_dropout: share of the examples that lose their label; 1 trains without labels.
        power: how far errors are evened out, see `Targets`.
    """

    every: int = 4
    times: TimeName = "logit-normal"
    class_dropout: float = 0.1
    power: float = 1.0

    @property
    def trains_steps(self) -> bool:
        """True: every step size has a mean velocity."""
        return True

    @property
    def taught_by(self) -> TaughtBy:
        """Data alone, and the derivative of what is trained."""
        return "data"

    @property
    def _flow(self) -> FlowMatching:
        return FlowMatching(self.class_dropout, self.times)

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> MeanFlowDraws:
        """Draw flow matching for all, and for the steps a second time: the later one ends them."""
        plan = config.length
        if not (isinstance(plan, FixedSteps) and plan.solver == "euler"):
            raise InputError(
                "mean flow takes a forward derivative, which goes through fixed Euler steps of "
                f"length alone; got {plan}"
            )
        steps = share(batch_size, self.every)
        end_key, flow_key = jax.random.split(key)
        flow = self._flow.draw(flow_key, batch_size, config, when)
        one, other = flow.time[:steps], jax.random.uniform(end_key, (steps,))
        start = flow.time.at[:steps].set(jnp.minimum(one, other))
        return MeanFlowDraws(jnp.maximum(one, other), dataclasses.replace(flow, time=start))

    def targets(
        self,
        draws: MeanFlowDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return flow targets, the first of them turned into those of steps."""
        config, n = networks.config, len(draws.end)
        flow = self._flow.targets(draws.flow, images, labels, networks)
        t, x_t, labels, speed = (x[:n] for x in (flow.t, flow.x_t, flow.labels, flow.velocity))
        step = times_from(draws.end, self.times, config.denoise_timesteps) - t

        def mean_velocity(t: Array, x: Array, step: Array) -> Array:
            return networks.student(t, x, index_of(step, config.flow_index), labels)

        velocity = by_the_identity(mean_velocity, t, x_t, step, speed)
        index = index_of(step, config.flow_index)
        return dataclasses.replace(
            flow,
            step_index=flow.step_index.astype(jnp.float32).at[:n].set(index),
            velocity=jnp.concatenate([velocity, flow.velocity[n:]]),
            power=jnp.full_like(flow.t, self.power),
        )


def index_of(step: Float[Array, " batch"], flow_index: int) -> Float[Array, " batch"]:
    """Return `min(-log2(step), flow_index)`, for a step of 0 too."""
    return -jnp.log2(jnp.maximum(step, 2.0**-flow_index))


def by_the_identity(
    mean_velocity: Callable[[Array, Array, Array], Array],
    t: Float[Array, " batch"],
    x_t: Float[Array, "batch height width channels"],
    step: Float[Array, " batch"],
    velocity: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    r"""Return $v + D (\partial_t + v \cdot \partial_x - \partial_D) u$, by one forward derivative.

    Args:
        mean_velocity: `u(t, x, step)`.
        t: where the steps start.
        x_t: the states there.
        step: their sizes `D`.
        velocity: the velocity `v` of the flow there.
    """
    ones = jnp.ones_like(t)
    _, change = jax.jvp(mean_velocity, (t, x_t, step), (ones, velocity, -ones))
    return velocity + per_image(step) * change
