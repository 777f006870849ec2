"""The time ODE put to use: noise to samples and back, trajectories, likelihood."""

from odelt_eqx.sampling.config import (
    SampleConfig as SampleConfig,
    program as program,
    raise_failures as raise_failures,
)
from odelt_eqx.sampling.consistency import consistency_sample as consistency_sample
from odelt_eqx.sampling.field import SolveStats as SolveStats
from odelt_eqx.sampling.flow import (
    CompiledSampler as CompiledSampler,
    invert as invert,
    peak_bytes as peak_bytes,
    sample as sample,
    sample_with_stats as sample_with_stats,
    trajectory as trajectory,
)
from odelt_eqx.sampling.likelihood import (
    Likelihood as Likelihood,
    log_likelihood as log_likelihood,
)
