"""The public names: what `import odelt_eqx as odelt` gives."""

from odelt_eqx import objective as objective
from odelt_eqx.condition import Classes as Classes, Guidance as Guidance, Vector as Vector
from odelt_eqx.errors import InputError as InputError, SolveError as SolveError
from odelt_eqx.evaluation.recommend import Recommendation as Recommendation, recommend as recommend
from odelt_eqx.interop import (
    load_reference as load_reference,
    load_safetensors as load_safetensors,
    load_sit as load_sit,
    save_safetensors as save_safetensors,
    save_sit as save_sit,
)
from odelt_eqx.interop.truncate import truncate as truncate
from odelt_eqx.network import Network as Network
from odelt_eqx.nn import (
    DiT as DiT,
    DiTConfig as DiTConfig,
    VectorNet as VectorNet,
    VectorNetConfig as VectorNetConfig,
)
from odelt_eqx.ode import (
    Adaptive as Adaptive,
    FixedSteps as FixedSteps,
    ODEBlock as ODEBlock,
    integrate_length as integrate_length,
    integrate_time as integrate_time,
)
from odelt_eqx.parallel import make_mesh as make_mesh, place as place
from odelt_eqx.presets import preset as preset
from odelt_eqx.sampling import (
    CompiledSampler as CompiledSampler,
    Likelihood as Likelihood,
    SampleConfig as SampleConfig,
    SolveStats as SolveStats,
    consistency_sample as consistency_sample,
    invert as invert,
    log_likelihood as log_likelihood,
    sample as sample,
    sample_with_stats as sample_with_stats,
    trajectory as trajectory,
)
from odelt_eqx.training.load import load as load, load_average as load_average
from odelt_eqx.training.step import (
    TrainState as TrainState,
    init_state as init_state,
    make_train_step as make_train_step,
)
from odelt_eqx.training.train import train as train
