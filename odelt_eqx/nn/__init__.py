"""Networks: the diffusion transformer, the network of vectors, and those that evaluation needs."""

from odelt_eqx.nn.autoencoder import (
    Autoencoder as Autoencoder,
    AutoencoderConfig as AutoencoderConfig,
)
from odelt_eqx.nn.dit import DiT as DiT, DiTConfig as DiTConfig
from odelt_eqx.nn.groups import stacked as stacked, unstacked as unstacked
from odelt_eqx.nn.inception import InceptionV3 as InceptionV3
from odelt_eqx.nn.vector import VectorNet as VectorNet, VectorNetConfig as VectorNetConfig

AnyNetworkConfig = DiTConfig | VectorNetConfig
"""The networks that a config can name."""
