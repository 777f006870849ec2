"""The objectives of the time axis, as a type: what those of the length axis can wrap."""

from odelt_eqx.objective.consistency import Consistency, ConsistencyDistillation
from odelt_eqx.objective.flow_matching import FlowMatching
from odelt_eqx.objective.live_reflow import LiveReflow
from odelt_eqx.objective.mean_flow import MeanFlow
from odelt_eqx.objective.progressive import Progressive
from odelt_eqx.objective.shortcut import Shortcut

TimeObjective = (
    FlowMatching
    | Shortcut
    | LiveReflow
    | Progressive
    | Consistency
    | ConsistencyDistillation
    | MeanFlow
)
