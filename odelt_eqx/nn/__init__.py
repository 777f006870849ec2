"""Networks: the diffusion transformer, the autoencoder of its latents, and Inception."""

from odelt_eqx.nn.autoencoder import (
    Autoencoder as Autoencoder,
    AutoencoderConfig as AutoencoderConfig,
    decode_in_chunks as decode_in_chunks,
)
from odelt_eqx.nn.block import DiTBlock as DiTBlock
from odelt_eqx.nn.dit import DiT as DiT, DiTConfig as DiTConfig
from odelt_eqx.nn.inception import InceptionV3 as InceptionV3
from odelt_eqx.nn.layout import stacked as stacked, unstacked as unstacked
