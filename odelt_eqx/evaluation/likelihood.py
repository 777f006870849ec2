"""Bits per dimension of held-out data, depth by depth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.data import Source
from odelt_eqx.data.reading import in_batches, some
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.nn.dit import DiT
from odelt_eqx.sampling import log_likelihood

IMAGES = 1000
"""Held-out images that the bits are measured on, at most."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """Bits per dimension at one depth and guidance.

    Args:
        depth: blocks run.
        guidance: classifier-free guidance weight.
        bits: mean over the held-out images.
        error: standard error of that mean.
        evaluations: network evaluations per image.
    """

    depth: int
    guidance: float
    bits: float
    error: float
    evaluations: float


def measure_bits(
    model: DiT, held_out: Source, config: GridConfig, depth: int, guidance: float
) -> Bits:
    """Return the bits per dimension of the held-out images, of at most `IMAGES`.

    Where the images have grey levels, uniform noise as wide as the step between two is added, and
    the result is a bound on the bits of the levels themselves; else it is that of the density.
    Images are read batch by batch; the last ones that fill no batch are left out.
    """
    noise_key, probe_key = jax.random.split(jax.random.key(config.seed))
    step = 2 / (held_out.levels - 1) if held_out.levels else 0.0
    offset = -np.log2(step) if step else 0.0
    places = some(held_out, IMAGES)
    size = len(places) // -(-len(places) // config.batch_size)
    places = places[: len(places) // size * size]
    bits, evaluations = [], []
    for index, (images, labels) in enumerate(in_batches(held_out, places, size)):
        noise = jax.random.uniform(jax.random.fold_in(noise_key, index), images.shape) - 0.5
        found = log_likelihood(
            model,
            jnp.asarray(images) + step * noise,
            jnp.asarray(labels),
            probes=config.likelihood,
            key=jax.random.fold_in(probe_key, index),
            length=config.length,
            depth=depth,
            guidance=guidance,
        )
        bits.append(np.asarray(found.bits_per_dim) + offset)
        evaluations.append(np.asarray(found.stats.evaluations))
    values = np.concatenate(bits)
    return Bits(
        depth=depth,
        guidance=guidance,
        bits=float(values.mean()),
        error=float(values.std(ddof=1) / np.sqrt(len(values))),
        evaluations=float(np.concatenate(evaluations).mean()),
    )
