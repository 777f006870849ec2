"""Networks: the diffusion transformer and its parts, and the autoencoder of its latents."""

from odelt_eqx.nn.autoencoder import (
    Autoencoder as Autoencoder,
    AutoencoderConfig as AutoencoderConfig,
    decode_in_chunks as decode_in_chunks,
)
from odelt_eqx.nn.block import DiTBlock as DiTBlock
from odelt_eqx.nn.dit import DiT as DiT, DiTConfig as DiTConfig
