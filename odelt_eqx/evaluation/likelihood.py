"""Bits per dimension of held-out data, depth by depth."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.data import Source, in_memory
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.nn.dit import DiT
from odelt_eqx.sampling import log_likelihood

IMAGES = 1000
"""Held-out images that the bits are measured on, at most."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """Bits per dimension at one depth.

    Args:
        depth: blocks run.
        bits: mean over the held-out images.
        error: standard error of that mean.
        evaluations: network evaluations per image.
    """

    depth: int
    bits: float
    error: float
    evaluations: float


def measure_bits(model: DiT, held_out: Source, config: GridConfig) -> Sequence[Bits]:
    """Return the bits per dimension of held-out images, at most `IMAGES`, at each depth of the map.

    Where the images have grey levels, uniform noise as wide as the step between two is added, and
    the result is a bound on the bits of the levels themselves; else it is that of the density.
    """
    chosen = in_memory(held_out, IMAGES)
    images = chosen.images
    noise_key, probe_key = jax.random.split(jax.random.key(config.seed))
    offset = 0.0
    if held_out.levels:
        step = 2 / (held_out.levels - 1)
        images = images + step * (jax.random.uniform(noise_key, images.shape) - 0.5)
        offset = -np.log2(step)
    size = len(images) // -(-len(images) // config.batch_size)
    rows = []
    for depth in config.depths or model.config.depths:
        bits, evaluations = [], []
        for index, start in enumerate(range(0, len(images) - size + 1, size)):
            found = log_likelihood(
                model,
                jnp.asarray(images[start : start + size]),
                jnp.asarray(chosen.labels[start : start + size]),
                probes=config.likelihood,
                key=jax.random.fold_in(probe_key, index),
                length=config.length,
                depth=depth,
                guidance=config.guidance,
            )
            bits.append(np.asarray(found.bits_per_dim) + offset)
            evaluations.append(np.asarray(found.stats.evaluations))
        values = np.concatenate(bits)
        rows.append(
            Bits(
                depth=depth,
                bits=float(values.mean()),
                error=float(values.std(ddof=1) / np.sqrt(len(values))),
                evaluations=float(np.concatenate(evaluations).mean()),
            )
        )
    return rows
