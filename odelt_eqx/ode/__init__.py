"""Nested ODEs: one description of a solve, an inner ODE over length, an outer one over time."""

from odelt_eqx.ode.blocks import Stack as Stack
from odelt_eqx.ode.length import (
    LengthStats as LengthStats,
    ODEBlock as ODEBlock,
    integrate_length as integrate_length,
)
from odelt_eqx.ode.plan import (
    SOLVERS as SOLVERS,
    Adaptive as Adaptive,
    FixedSteps as FixedSteps,
    Plan as Plan,
)
from odelt_eqx.ode.time import TimeSolution as TimeSolution, integrate_time as integrate_time
