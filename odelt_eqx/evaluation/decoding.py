"""What a network makes, as images: as it is, or by the autoencoder that latents come from."""

import dataclasses
import hashlib

import jax
import numpy as np
from jaxtyping import Array, Float

from odelt_eqx.errors import InputError
from odelt_eqx.interop import load_autoencoder
from odelt_eqx.nn.autoencoder import Autoencoder, decode_in_chunks
from odelt_eqx.nn.dit import DiTConfig

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Shows what a network makes.

    Args:
        autoencoder: decodes latents; None where they are images already.
    """

    autoencoder: Autoencoder | None = None

    def __call__(
        self, made: Float[Array, "count h w channels"] | Float[np.ndarray, "count h w channels"]
    ) -> Float[np.ndarray, "count height width colours"]:
        """Return images, about in [-1, 1], a few at a time on a device."""
        if self.autoencoder is None:
            return np.asarray(made)
        return decode_in_chunks(self.autoencoder, made)

    def shape(self, made: Shape) -> Shape:
        """Return the shape of an image, from that of what is made."""
        if self.autoencoder is None:
            return made
        reduction = self.autoencoder.config.reduction
        return made[0] * reduction, made[1] * reduction, 3

    @property
    def name(self) -> str | None:
        """What tells its images from another's, or None."""
        if self.autoencoder is None:
            return None
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.autoencoder):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:8]


def open_decoder(path: str | None, config: DiTConfig) -> Decoder:
    """Return what shows the results of a network.

    Args:
        path: weights of the autoencoder, see `load_autoencoder`; None if images are made.
        config: of the network.

    Raises:
        InputError: the weights cannot be read, or do not fit the network.
    """
    if path is None:
        return Decoder()
    autoencoder = load_autoencoder(path)
    if autoencoder.config.latent_channels != config.channels:
        raise InputError(
            f"{path} decodes latents of {autoencoder.config.latent_channels} channels; the network "
            f"makes {config.channels}"
        )
    return Decoder(autoencoder)
