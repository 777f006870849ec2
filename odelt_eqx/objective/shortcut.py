"""Shortcut models: one network for every step size."""

import dataclasses
from collections.abc import Callable

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
from odelt_eqx.objective.path import interpolate, on_grid, per_image
from odelt_eqx.ode.time import guided_velocity


class ShortcutDraws(eqx.Module):
    """Draws of `Shortcut`.

    Args:
        step_index: uniform over the indices that are not the flow field's.
        time: uniform in [0, 1).
        noise: standard normal.
        flow: draws of the rest of the batch.
    """

    step_index: Int[Array, " shortcuts"]
    time: Float[Array, " shortcuts"]
    noise: Float[Array, "shortcuts height width channels"]
    flow: FlowDraws


@dataclasses.dataclass(frozen=True)
class Shortcut(Objective):
    """One step should go where the teacher's two half steps go; the rest is flow matching.

    For the first `1 / every` of the batch, with step `2 h = 2 ** -step_index` and `t` on the grid
    of such steps: `v_1 = v(t, x_t)`, `v_2 = v(t + h, x_t + h v_1)`, both for steps of `h`, and
    the target is `(v_1 + v_2) / 2`. Source: arXiv 2410.12557.

    Differs from the reference, unless `as_published`: noise for the two parts comes from different
    keys; each image is used once (there the last `1 / every` are not used at all); a guided
    shortcut follows the guided velocity at both half steps and is its input's only target (there
    half of them aim at the velocity without guidance, from the same input under the same label,
    and the guided ones mix in a state that was not guided).

    Args:
        every: one example in `every` is a time shortcut.
        guidance: weight of the guidance that shortcuts learn; 1 for none; 0 trains without labels.
        class_dropout: share of the flow-matching examples that lose their label.
        as_published: make the targets of the reference, faults included.
    """

    every: int = 8
    guidance: float = 1.0
    class_dropout: float = 0.1
    as_published: bool = False

    @property
    def trains_steps(self) -> bool:
        """True: every step index has a meaning."""
        return True

    @property
    def taught_by(self) -> TaughtBy:
        """Its average."""
        return "average"

    @property
    def _flow(self) -> FlowMatching:
        return FlowMatching(class_dropout=self.class_dropout, times="grid")

    def draw(
        self, key: Key[Array, ""], batch_size: int, config: DiTConfig, when: TrainingTime
    ) -> ShortcutDraws:
        """Draw for the shortcuts and for the rest, each draw from a key of its own."""
        shortcuts = share(batch_size, self.every)
        step, time, noise, flow = jax.random.split(key, 4)
        rest = self._flow.draw(flow, batch_size - shortcuts, config, when)
        if self.as_published:
            same_key = normal(noise, rest.noise.shape)
            rest = dataclasses.replace(rest, noise=same_key)
            shortcuts = shortcuts if self.guidance in (0, 1) else shortcuts // 2
        return ShortcutDraws(
            step_index=jax.random.randint(step, (shortcuts,), 0, config.flow_index),
            time=jax.random.uniform(time, (shortcuts,)),
            noise=normal(noise, (shortcuts, *config.image_shape)),
            flow=rest,
        )

    def targets(
        self,
        draws: ShortcutDraws,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        networks: Networks,
    ) -> Targets:
        """Return shortcut targets for the first examples and flow targets for the others."""
        if self.guidance == 0:
            labels = jnp.full_like(labels, networks.config.null_label)
        n, rest = len(draws.step_index), len(draws.flow.time)
        make = self._shortcuts
        if self.as_published and self.guidance not in (0, 1):
            make = self._published_guided_shortcuts
        shortcut = make(draws, images[:n], labels[:n], networks)
        others = slice(None, rest) if self.as_published else slice(n, None)
        flow = self._flow.targets(draws.flow, images[others], labels[others], networks)
        return joined(shortcut, flow)

    def _shortcuts(
        self,
        draws: ShortcutDraws,
        images: Float[Array, "shortcuts height width channels"],
        labels: Int[Array, " shortcuts"],
        networks: Networks,
    ) -> Targets:
        t, half, x_t = self._start(draws, images)

        def velocity(t: Array, x: Array) -> Array:
            null = networks.config.null_label
            index = draws.step_index + 1
            return guided_velocity(networks.teacher, t, x, index, labels, null, self.guidance)

        return Targets(
            x_t=x_t,
            t=t,
            step_index=draws.step_index,
            labels=labels,
            velocity=two_half_steps(velocity, t, half, x_t),
            depth=networks.config.depth,
        )

    def _published_guided_shortcuts(
        self,
        draws: ShortcutDraws,
        images: Float[Array, "shortcuts height width channels"],
        labels: Int[Array, " shortcuts"],
        networks: Networks,
    ) -> Targets:
        """Return each input twice under one label: with its labelled and with its guided target."""
        twice = lambda a: jnp.concatenate([a, a])
        t, half, x_t = map(twice, self._start(draws, images))
        index = twice(draws.step_index)
        asked = jnp.concatenate([labels, jnp.full_like(labels, networks.config.null_label)])

        def velocity(t: Array, x: Array) -> Array:
            labelled, null = jnp.split(networks.teacher(t, x, index + 1, asked), 2)
            return jnp.concatenate([labelled, null + self.guidance * (labelled - null)])

        return Targets(
            x_t=x_t,
            t=t,
            step_index=index,
            labels=twice(labels),
            velocity=two_half_steps(velocity, t, half, x_t),
            depth=networks.config.depth,
        )

    def _start(
        self, draws: ShortcutDraws, images: Float[Array, "shortcuts height width channels"]
    ) -> tuple[Array, Array, Array]:
        """Return times on the grid of each example's step, half of that step, and the states."""
        steps = 2.0**draws.step_index
        t = on_grid(draws.time, steps)
        return t, 0.5 / steps, interpolate(t, draws.noise, images)


def two_half_steps(
    velocity: Callable[[Array, Array], Array],
    t: Float[Array, " batch"],
    half: Float[Array, " batch"],
    x_t: Float[Array, "batch height width channels"],
    clip: float | None = None,
) -> Float[Array, "batch height width channels"]:
    """Return the mean of the velocities of two Euler steps of size `half`.

    Args:
        velocity: `velocity(t, x)`.
        t: times.
        half: the size of each step.
        x_t: states.
        clip: the largest absolute value of the state between the steps, None for any.
    """
    first = velocity(t, x_t)
    middle = x_t + per_image(half) * first
    middle = middle if clip is None else jnp.clip(middle, -clip, clip)
    return (first + velocity(t + half, middle)) / 2
