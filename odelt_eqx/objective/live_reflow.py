"""Live reflow: pairs of noise and what the network makes of it, while it trains."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from odelt_eqx.draws import normal
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    joined,
    share,
)
from odelt_eqx.objective.flow_matching import FlowDraws, FlowMatching
from odelt_eqx.objective.path import FLOOR, interpolate, on_grid
from odelt_eqx.ode.cost import Cost, no_cost
from odelt_eqx.ode.plan import FixedSteps
from odelt_eqx.ode.time import guided_velocity, integrate_time


class ReflowDraws(eqx.Module):
    """Draws of `LiveReflow`.

    Args:
        step_index: uniform over the indices that are not the flow field's.
        time: uniform in [0, 1).
        noise: standard normal.
        flow: draws of the rest of the batch.
    """

    step_index: Int[Array, " pairs"]
    time: Float[Array, " pairs"]
    noise: Float[Array, "pairs height width channels"]
    flow: FlowDraws


@dataclasses.dataclass(frozen=True)
class LiveReflow(Objective):
    """Any large step should follow the line from noise to where the flow field takes it.

    For the first `1 / every` of the batch, `x_1` is the end of an Euler solve of the flow field
    from the noise `x_0`, and the target at `(1 - t) x_0 + t x_1` is `x_1 - x_0`; the rest is flow
    matching. Source: arXiv 2209.03003, live as in 2410.12557. The network that is trained makes
    the pairs, or the one that is given as teacher: then it is plain reflow.

    Differs from the reference, unless `as_published`: noise for the two parts comes from different
    keys; each image is used once (there the last `1 / every` are not used at all); the pairs train
    every step index but the flow field's (there index 0 alone, and its sampler asks for that
    index at every step count but the largest).

    Args:
        every: one example in `every` is a pair.
        guidance: weight of the guidance that makes the pairs; 0 trains without labels.
        steps: Euler steps of the solve.
        class_dropout: share of the flow-matching examples that lose their label.
        as_published: make the targets of the reference.
    """

    every: int = 8
    guidance: float = 1.0
    steps: int = 8
    class_dropout: float = 0.1
    as_published: bool = False

    @property
    def trains_steps(self) -> bool:
        """True: large steps and the flow field differ."""
        return True

    @property
    def taught_by(self) -> TaughtBy:
        """What is trained, as it is."""
        return "student"

    @property
    def _flow(self) -> FlowMatching:
        return FlowMatching(self.class_dropout, times="grid", sigma_min=FLOOR)

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> ReflowDraws:
        """Draw for the pairs and for the rest, each draw from a key of its own."""
        pairs = share(batch_size, self.every)
        step, time, noise, flow = jax.random.split(key, 4)
        index = jax.random.randint(step, (pairs,), 0, config.flow_index)
        start = normal(noise, (batch_size, *config.image_shape))
        rest = self._flow.draw(flow, batch_size - pairs, config, when)
        if self.as_published:
            index = jnp.zeros_like(index)
            rest = dataclasses.replace(rest, noise=start[: batch_size - pairs])
        return ReflowDraws(
            step_index=index,
            time=jax.random.uniform(time, (pairs,)),
            noise=start[:pairs],
            flow=rest,
        )

    def targets(
        self,
        draws: ReflowDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return straightened pairs for the first examples and flow targets for the others."""
        config = networks.config
        if self.guidance == 0:
            labels = jnp.full_like(labels, config.null_label)
        n, rest = len(draws.time), len(draws.flow.time)
        ends = self._ends(draws.noise, labels[:n], networks)
        t = on_grid(draws.time, config.denoise_timesteps)
        pairs = Targets(
            x_t=interpolate(t, draws.noise, ends, sigma_min=FLOOR),
            t=t,
            step_index=draws.step_index,
            labels=labels[:n],
            velocity=ends - draws.noise,
            depth=config.depth,
        )
        others = slice(None, rest) if self.as_published else slice(n, None)
        flow = self._flow.targets(draws.flow, images[others], labels[others], networks)
        return joined(pairs, flow)

    def _ends(
        self,
        noise: Float[Array, "pairs height width channels"],
        labels: Int[Array, " pairs"],
        networks: Networks,
    ) -> Float[Array, "pairs height width channels"]:
        """Return where the flow field takes the noise."""
        config = networks.config

        def flow_field(t: Array, x: Array, step_index: Array) -> tuple[Array, Cost]:
            index = jnp.full_like(step_index, config.flow_index)
            velocity = guided_velocity(
                networks.teacher, t, x, index, labels, config.null_label, self.guidance
            )
            return velocity, no_cost(labels.shape)  # nobody asks what targets cost

        plan = FixedSteps(steps=self.steps)
        return integrate_time(flow_field, noise, plan, flow_index=config.flow_index).states[-1]
