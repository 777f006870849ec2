"""What training regresses on: one file per family; `LengthConsistency` wraps any of them."""

from odelt_eqx.objective.base import (
    Objective as Objective,
    Targets as Targets,
    Teacher as Teacher,
)
from odelt_eqx.objective.flow_matching import FlowDraws as FlowDraws, FlowMatching as FlowMatching
from odelt_eqx.objective.length_consistency import (
    LengthConsistency as LengthConsistency,
    LengthDraws as LengthDraws,
)
from odelt_eqx.objective.shortcut import Shortcut as Shortcut, ShortcutDraws as ShortcutDraws
