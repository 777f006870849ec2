"""The reference's training targets, faults included, for parity with its recorded numbers.

Nobody should train with them: each class says what is wrong, and which objective is right.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from odelt_eqx.network import Condition, Network
from odelt_eqx.noise import normal
from odelt_eqx.objective.base import (
    Networks,
    Objective,
    Targets,
    TaughtBy,
    TrainingTime,
    X,
    asked,
    first,
    join,
    share,
)
from odelt_eqx.objective.length_consistency import (
    LengthDraws,
    TimeObjective,
    consistent_targets,
)
from odelt_eqx.objective.live_reflow import LiveReflow
from odelt_eqx.objective.shortcut import (
    Shortcut,
    ShortcutDraws,
    start_of_steps,
    two_half_steps,
)


@dataclasses.dataclass(frozen=True)
class PublishedShortcut(Objective):
    """The reference's `Shortcut`.

    One noise key serves both parts of the batch, and the last `1 / every` examples are not used.
    Under guidance each input appears twice under one label with two targets that contradict each
    other, the labelled velocity's and the guided one's, and the guided half steps mix in a state
    that was not guided.

    Args:
        every: as for `Shortcut`.
        guidance: as for `Shortcut`.
        class_dropout: as for `Shortcut`.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "average"
    every: int = 8
    guidance: float = 1.0
    class_dropout: float = 0.1

    @property
    def repaired(self) -> Shortcut:
        """The objective without the faults."""
        return Shortcut(self.every, self.guidance, self.class_dropout)

    @property
    def _guided(self) -> bool:
        return self.guidance not in (0, 1)

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> ShortcutDraws:
        """Draw as `Shortcut`, but the same noise for both parts."""
        draws = self.repaired.draw(key, batch_size, network, when)
        _, _, noise_key, _ = jax.random.split(key, 4)
        flow = dataclasses.replace(draws.flow, noise=normal(noise_key, draws.flow.noise.shape))
        count = len(draws.time) // 2 if self._guided else len(draws.time)
        index, time, noise = (x[:count] for x in (draws.step_index, draws.time, draws.noise))
        return ShortcutDraws(index, time, noise, flow)

    def targets(
        self, draws: ShortcutDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return shortcut targets of the first examples and flow targets of the first, too."""
        network, n, rest = networks.student.network, len(draws.time), len(draws.flow.time)
        condition = asked(self.guidance, condition, network)
        labels, index = first(n, condition), draws.step_index
        null = network.null(n)
        t, half, x_t = start_of_steps(draws, data[:n])
        twice = lambda a: jnp.concatenate([a, a])
        if self._guided and labels is not None and null is not None:
            both = jnp.concatenate([labels, null])
            t, half, x_t, index, labels = map(twice, (t, half, x_t, index, labels))

            def velocity(t: Array, x: Array) -> Array:
                labelled, free = jnp.split(networks.teacher(t, x, index + 1, both), 2)
                return jnp.concatenate([labelled, free + self.guidance * (labelled - free)])
        else:

            def velocity(t: Array, x: Array) -> Array:
                return networks.teacher(t, x, index + 1, labels)

        target = two_half_steps(velocity, t, half, x_t)
        shortcuts = Targets(x_t, t, index, labels, target)
        flow = self.repaired.flow.targets(draws.flow, data[:rest], first(rest, condition), networks)
        return join(shortcuts, flow)


@dataclasses.dataclass(frozen=True)
class PublishedLiveReflow(Objective):
    """The reference's `LiveReflow`.

    One noise key serves both parts of the batch, the last `1 / every` examples are not used, and
    the pairs train step index 0 alone, while its sampler asks for that index at every step count
    but the largest.

    Args:
        every: as for `LiveReflow`.
        guidance: as for `LiveReflow`.
        steps: as for `LiveReflow`.
        class_dropout: as for `LiveReflow`.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "student"
    every: int = 8
    guidance: float = 1.0
    steps: int = 8
    class_dropout: float = 0.1

    @property
    def repaired(self) -> LiveReflow:
        """The objective without the faults."""
        return LiveReflow(self.every, self.guidance, self.steps, self.class_dropout)

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> ShortcutDraws:
        """Draw as `LiveReflow`, but the same noise for both parts and step index 0."""
        draws = self.repaired.draw(key, batch_size, network, when)
        _, _, noise_key, _ = jax.random.split(key, 4)
        noise = normal(noise_key, (batch_size, *network.shape))
        flow = dataclasses.replace(draws.flow, noise=noise[: len(draws.flow.time)])
        index = jnp.zeros_like(draws.step_index)
        return ShortcutDraws(index, draws.time, noise[: len(index)], flow)

    def targets(
        self, draws: ShortcutDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return straightened pairs and flow targets, both of the first examples."""
        n, rest = len(draws.time), len(draws.flow.time)
        condition = asked(self.guidance, condition, networks.student.network)
        flow = self.repaired.flow.targets(draws.flow, data[:rest], first(rest, condition), networks)
        return join(self.repaired.pairs(draws, first(n, condition), networks), flow)


@dataclasses.dataclass(frozen=True)
class PublishedLengthConsistency(Objective):
    """The reference's `LengthConsistency`.

    Every depth is drawn independently, so nothing is known while tracing: every block runs for
    every example, masked, which saves no compute.

    Args:
        objective: what is trained.
        every: as for `LengthConsistency`.
    """

    objective: PublishedShortcut | PublishedLiveReflow | TimeObjective = PublishedShortcut()
    every: int = 8

    @property
    def trains_steps(self) -> bool:
        """Whether the wrapped objective does."""
        return self.objective.trains_steps

    @property
    def taught_by(self) -> TaughtBy:
        """What teaches the wrapped objective."""
        return self.objective.taught_by

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> LengthDraws:
        """Draw for the wrapped objective, and a depth for each example."""
        depths = np.array(network.depths[::-1])
        key, student_key, teacher_key = jax.random.split(key, 3)
        return LengthDraws(
            objective=self.objective.draw(key, batch_size, network, when),
            student=jax.random.choice(student_key, depths, (batch_size,)),
            teacher=jax.random.choice(teacher_key, depths, (share(batch_size, self.every),)),
        )

    def targets(
        self, draws: LengthDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return the wrapped objective's targets, the last ones replaced by another depth's."""
        base = self.objective.targets(draws.objective, data, condition, networks)
        return consistent_targets(base, draws, networks)


PublishedObjective = PublishedShortcut | PublishedLiveReflow | PublishedLengthConsistency
