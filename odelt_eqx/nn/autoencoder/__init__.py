"""The autoencoder of Stable Diffusion and FLUX: images to latents an eighth as large, and back.

The modules' fields have the names of the published files, as in
`encoder.down_blocks.0.resnets.1.conv2.weight`, so that a loader needs no table.
"""

from odelt_eqx.nn.autoencoder.network import (
    LOG_VARIANCES as LOG_VARIANCES,
    Autoencoder as Autoencoder,
    AutoencoderConfig as AutoencoderConfig,
    PerChannel as PerChannel,
    check_factors as check_factors,
)
