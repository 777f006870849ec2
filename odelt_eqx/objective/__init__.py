"""What training regresses on: one file per family.

`LengthConsistency` and `DeepSupervision` wrap any of the others, to train every depth;
`SelfAlignment` wraps those on a path, or `DeepSupervision`, to train hidden states besides.
"""

from odelt_eqx.objective.base import (
    Networks as Networks,
    Objective as Objective,
    Targets as Targets,
    TaughtBy as TaughtBy,
    Teacher as Teacher,
    TrainingTime as TrainingTime,
    WrappingObjective as WrappingObjective,
    innermost as innermost,
)
from odelt_eqx.objective.consistency import (
    Consistency as Consistency,
    ConsistencyDistillation as ConsistencyDistillation,
)
from odelt_eqx.objective.deep_supervision import DeepSupervision as DeepSupervision
from odelt_eqx.objective.flow_matching import FlowDraws as FlowDraws, FlowMatching as FlowMatching
from odelt_eqx.objective.length_consistency import (
    LengthConsistency as LengthConsistency,
    LengthDraws as LengthDraws,
)
from odelt_eqx.objective.live_reflow import LiveReflow as LiveReflow
from odelt_eqx.objective.mean_flow import MeanFlow as MeanFlow, MeanFlowDraws as MeanFlowDraws
from odelt_eqx.objective.path import FLOOR
from odelt_eqx.objective.progressive import Progressive as Progressive, StageDraws as StageDraws
from odelt_eqx.objective.self_alignment import (
    AlignmentDraws as AlignmentDraws,
    SelfAlignment as SelfAlignment,
)
from odelt_eqx.objective.shortcut import Shortcut as Shortcut, ShortcutDraws as ShortcutDraws
from odelt_eqx.objective.time import TimeObjective as TimeObjective

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
    "improved-mean-flow": MeanFlow(tangent="network"),
}
"""The reference's names of training types, two that it plans among them, and mean flow."""

DEPTH_TYPES: dict[str, LengthConsistency | DeepSupervision] = {
    "length-consistency": LengthConsistency(),
    "deep-supervision": DeepSupervision(share=0.5),
}
"""How every depth is trained, around any of `TRAIN_TYPES`."""

STATE_TYPES: dict[str, SelfAlignment] = {"self-alignment": SelfAlignment()}
"""What hidden states are trained on besides, around all of the above."""

TYPES = {**TRAIN_TYPES, **DEPTH_TYPES, **STATE_TYPES}
"""The training types by the names that a command takes."""
