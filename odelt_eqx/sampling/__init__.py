"""The time ODE put to use: noise to images and back, what is likely, and re-noised steps."""

from odelt_eqx.sampling.consistency import consistency_sample as consistency_sample
from odelt_eqx.sampling.flow import (
    Program as Program,
    invert as invert,
    sample as sample,
    sample_with_stats as sample_with_stats,
    trajectory as trajectory,
)
from odelt_eqx.sampling.likelihood import (
    Likelihood as Likelihood,
    log_likelihood as log_likelihood,
)
from odelt_eqx.sampling.noise import noise_of as noise_of
