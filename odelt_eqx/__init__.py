"""Flow and shortcut models whose cost is dialled on two axes: time steps and network depth."""

from odelt_eqx.errors import InputError as InputError, SolveError as SolveError
from odelt_eqx.evaluation.recommend import (
    Recommendation as Recommendation,
    recommend as recommend,
)
from odelt_eqx.interop import (
    load_reference as load_reference,
    load_safetensors as load_safetensors,
    save_safetensors as save_safetensors,
)
from odelt_eqx.interop.truncate import truncate as truncate
from odelt_eqx.nn import DiT as DiT, DiTConfig as DiTConfig
from odelt_eqx.ode import Adaptive as Adaptive, FixedSteps as FixedSteps
from odelt_eqx.ode.time import SolveStats as SolveStats
from odelt_eqx.sampling import (
    Likelihood as Likelihood,
    consistency_sample as consistency_sample,
    invert as invert,
    log_likelihood as log_likelihood,
    sample as sample,
    sample_with_stats as sample_with_stats,
    trajectory as trajectory,
)
from odelt_eqx.sharding import make_mesh as make_mesh, placed as placed
from odelt_eqx.training.checkpoint import load as load
