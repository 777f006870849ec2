"""Foreign weights and latents, never trusted, and the reference's faulty objectives."""

from odelt_eqx.interop.autoencoder import (
    autoencoder_from_weights as autoencoder_from_weights,
    load_autoencoder as load_autoencoder,
)
from odelt_eqx.interop.inception import load_inception as load_inception
from odelt_eqx.interop.latent_files import holds_latents as holds_latents
from odelt_eqx.interop.latents import import_latents as import_latents
from odelt_eqx.interop.published import (
    PublishedLengthConsistency as PublishedLengthConsistency,
    PublishedLiveReflow as PublishedLiveReflow,
    PublishedShortcut as PublishedShortcut,
)
from odelt_eqx.interop.reference import (
    dit_from_reference as dit_from_reference,
    load_reference as load_reference,
    load_reference_pair as load_reference_pair,
)
from odelt_eqx.interop.safetensors import (
    load_safetensors as load_safetensors,
    save_safetensors as save_safetensors,
)
from odelt_eqx.interop.sit import (
    dit_from_sit as dit_from_sit,
    load_sit as load_sit,
    load_sit_pair as load_sit_pair,
    save_sit as save_sit,
)
