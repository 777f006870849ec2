"""What training regresses on: one file per family; `LengthConsistency` wraps any of them."""

from odelt_eqx.objective.base import (
    Networks as Networks,
    Objective as Objective,
    Targets as Targets,
    TaughtBy as TaughtBy,
    Teacher as Teacher,
    TrainingTime as TrainingTime,
)
from odelt_eqx.objective.consistency import (
    Consistency as Consistency,
    ConsistencyDistillation as ConsistencyDistillation,
)
from odelt_eqx.objective.flow_matching import FlowDraws as FlowDraws, FlowMatching as FlowMatching
from odelt_eqx.objective.length_consistency import (
    LengthConsistency as LengthConsistency,
    LengthDraws as LengthDraws,
)
from odelt_eqx.objective.live_reflow import LiveReflow as LiveReflow, ReflowDraws as ReflowDraws
from odelt_eqx.objective.mean_flow import MeanFlow as MeanFlow, MeanFlowDraws as MeanFlowDraws
from odelt_eqx.objective.progressive import Progressive as Progressive, StageDraws as StageDraws
from odelt_eqx.objective.shortcut import Shortcut as Shortcut, ShortcutDraws as ShortcutDraws
from odelt_eqx.objective.table import TRAIN_TYPES as TRAIN_TYPES, TimeObjective as TimeObjective
