"""Pictures of what a network has learnt so far."""

import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.config import TrainConfig
from odelt_eqx.draws import normal
from odelt_eqx.images import sheet
from odelt_eqx.nn.dit import DiT
from odelt_eqx.ode.plan import FixedSteps
from odelt_eqx.sampling import sample
from odelt_eqx.training.pace import Pace
from odelt_eqx.watching import Watcher

COLUMNS = 10


class Previews:
    """Draws the pictures that a run's config asks for, always from the same noise."""

    def __init__(self, config: TrainConfig, log: Watcher, pace: Pace):
        """Show them to `log`, and leave their time out of `pace`."""
        self._watch, self._log, self._pace = config.watch, log, pace
        self._depths = config.watch.sample_depths or config.model.depths
        self._shape = (config.watch.sample_count, *config.model.image_shape)
        self._labels = jnp.arange(config.watch.sample_count) % config.model.num_classes
        self._seed = config.seed

    def after(self, step: int, model: DiT) -> None:
        """Draw with `model` if pictures are due after `step`, one a depth and number of steps."""
        watch = self._watch
        if not watch.sample_every or step % watch.sample_every:
            return
        noise = normal(jax.random.key(self._seed), self._shape)
        for depth in self._depths:
            for steps in watch.sample_steps:
                time = FixedSteps(steps=steps)
                images = np.asarray(
                    sample(
                        model,
                        noise,
                        self._labels,
                        time=time,
                        depth=depth,
                        guidance=watch.guidance,
                    )
                )
                picture = sheet(images, min(COLUMNS, len(images)))
                self._log.picture(step, f"depth-{depth}-steps-{steps}", picture)
        self._pace.restart()
