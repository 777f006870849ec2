"""Every training type by its name."""

from odelt_eqx.objective.consistency import Consistency, ConsistencyDistillation
from odelt_eqx.objective.flow_matching import FlowMatching
from odelt_eqx.objective.live_reflow import LiveReflow
from odelt_eqx.objective.mean_flow import MeanFlow
from odelt_eqx.objective.path import FLOOR
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
"""What `LengthConsistency` can wrap."""

TRAIN_TYPES: dict[str, TimeObjective] = {
    "naive": FlowMatching(times="grid", sigma_min=FLOOR),
    "fm": FlowMatching(sigma_min=0.01),
    "icfm": FlowMatching(sigma=0.01),
    "rfm": FlowMatching(),
    "otcfm": FlowMatching(coupling="optimal"),
    "sifm": FlowMatching(path="trigonometric"),
    "shortcut": Shortcut(),
    "livereflow": LiveReflow(),
    "progressive": Progressive(),
    "consistency": Consistency(),
    "consistency-distillation": ConsistencyDistillation(),
    "mean-flow": MeanFlow(),
}
"""The reference's names of training types, among them two that it plans, and "mean-flow"."""
