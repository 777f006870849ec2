"""The reference's training targets, faults included, for parity with its recorded numbers.

Nobody should train with them: each class says what is wrong, and which objective is right.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from odelt_eqx.condition import Condition, Learned
from odelt_eqx.network import Network
from odelt_eqx.noise import normal
from odelt_eqx.objective import LiveReflow, Networks, Objective, Shortcut, ShortcutDraws, Targets
from odelt_eqx.objective.base import TaughtBy, TrainingTime, X, asked, join, share, split
from odelt_eqx.objective.length_consistency import DrawnDepths, LengthDraws
from odelt_eqx.objective.shortcut import start_of_steps, two_half_steps
from odelt_eqx.objective.time import TimeObjective


@dataclasses.dataclass(frozen=True)
class PublishedShortcut(Objective):
    """The reference's `Shortcut`.

    One noise key serves both parts of the batch, and the last `1 / every` examples are not used.
    Under guidance each input appears twice under one label with two targets that contradict each
    other, the labelled velocity's and the guided one's, and the guided half steps mix in a state
    that was not guided.

    Args:
        repaired: the objective without the faults.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "average"
    repaired: Shortcut = Shortcut()

    @property
    def learned(self) -> Learned:
        """Which conditions it teaches."""
        return self.repaired.learned

    def draw(
        self, key: Key[Array, ""], batch_size: int, network: Network, when: TrainingTime
    ) -> ShortcutDraws:
        """Draw as `Shortcut`, but the same noise for both parts."""
        draws = self.repaired.draw(key, batch_size, network, when)
        _, _, noise_key, _ = jax.random.split(key, 4)
        flow = dataclasses.replace(draws.flow, noise=normal(noise_key, draws.flow.noise.shape))
        guided = self.repaired.guidance not in (0, 1)
        count = len(draws.time) // 2 if guided else len(draws.time)
        index, time, noise = (x[:count] for x in (draws.step_index, draws.time, draws.noise))
        return ShortcutDraws(index, time, noise, flow)

    def targets(
        self, draws: ShortcutDraws, data: X, condition: Condition | None, networks: Networks
    ) -> Targets:
        """Return shortcut targets of the first examples and flow targets of the first, too."""
        network, guidance = networks.student.network, self.repaired.guidance
        n, rest = len(draws.time), len(draws.flow.time)
        condition = asked(guidance, condition, network)
        labels, index = split(condition, n)[0], draws.step_index
        null = network.null(n)
        t, half, x_t = start_of_steps(draws, data[:n])
        twice = lambda a: jnp.concatenate([a, a])
        if guidance not in (0, 1) and labels is not None and null is not None:
            both = jnp.concatenate([labels, null])
            t, half, x_t, index, labels = map(twice, (t, half, x_t, index, labels))

            def velocity(t: Array, x: Array) -> Array:
                labelled, free = jnp.split(networks.teacher(t, x, index + 1, both), 2)
                return jnp.concatenate([labelled, free + guidance * (labelled - free)])
        else:

            def velocity(t: Array, x: Array) -> Array:
                return networks.teacher(t, x, index + 1, labels)

        shortcuts = Targets(x_t, t, index, labels, two_half_steps(velocity, t, half, x_t))
        flow_labels, _ = split(condition, rest)
        flow = self.repaired.flow.targets(draws.flow, data[:rest], flow_labels, networks)
        return join(shortcuts, flow)


@dataclasses.dataclass(frozen=True)
class PublishedLiveReflow(Objective):
    """The reference's `LiveReflow`.

    One noise key serves both parts of the batch, the last `1 / every` examples are not used, and
    the pairs train step index 0 alone, while its sampler asks for that index at every step count
    but the largest.

    Args:
        repaired: the objective without the faults.
    """

    trains_steps: ClassVar[bool] = True
    taught_by: ClassVar[TaughtBy] = "student"
    repaired: LiveReflow = LiveReflow()

    @property
    def learned(self) -> Learned:
        """Which conditions it teaches."""
        return self.repaired.learned

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
        condition = asked(self.repaired.guidance, condition, networks.student.network)
        labels, flow_labels = split(condition, n)[0], split(condition, rest)[0]
        flow = self.repaired.flow.targets(draws.flow, data[:rest], flow_labels, networks)
        return join(self.repaired.pairs(draws, labels, networks), flow)


@dataclasses.dataclass(frozen=True)
class PublishedLengthConsistency(DrawnDepths):
    """The reference's `LengthConsistency`.

    Every depth is drawn independently, so nothing is known while tracing: every block runs for
    every example, masked, which saves no compute.

    Args:
        objective: what is trained.
        every: as for `LengthConsistency`.
    """

    objective: PublishedShortcut | PublishedLiveReflow | TimeObjective = PublishedShortcut()
    every: int = 8

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


PublishedObjective = PublishedShortcut | PublishedLiveReflow | PublishedLengthConsistency
