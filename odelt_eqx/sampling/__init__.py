"""The time ODE put to use: noise to samples and back, trajectories, likelihood."""

from odelt_eqx.sampling.compiled import (
    CompiledSampler as CompiledSampler,
    CompiledSamplers as CompiledSamplers,
    peak_bytes as peak_bytes,
)
from odelt_eqx.sampling.config import (
    SampleConfig as SampleConfig,
    raise_failures as raise_failures,
)
from odelt_eqx.sampling.consistency import consistency_sample as consistency_sample
from odelt_eqx.sampling.field import SolveStats as SolveStats
from odelt_eqx.sampling.flow import (
    invert as invert,
    sample as sample,
    sample_with_stats as sample_with_stats,
    trajectory as trajectory,
)
from odelt_eqx.sampling.likelihood import (
    Likelihood as Likelihood,
    log_likelihood as log_likelihood,
)
