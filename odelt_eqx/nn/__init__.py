"""Networks: the diffusion transformer and its parts."""

from odelt_eqx.nn.block import DiTBlock as DiTBlock
from odelt_eqx.nn.dit import DiT as DiT, DiTConfig as DiTConfig
