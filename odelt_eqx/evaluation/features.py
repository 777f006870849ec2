"""What pictures are compared by: their pixels, or what a network sees in them."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odelt_eqx.errors import InputError
from odelt_eqx.nn.classifier import ConvNet
from odelt_eqx.nn.inception import InceptionV3
from odelt_eqx.sharding import evenly, whole

Images = Float[Array, "batch height width channels"] | Float[np.ndarray, "batch h w channels"]

SIDE = 299
"""Height and width that Inception is shown, in pixels."""


@runtime_checkable
class Features(Protocol):
    """Images (batch, height, width, channels) in [-1, 1] to vectors (batch, features).

    A distance is named by its features: two that differ in `name` are not to be compared.
    """

    @property
    def name(self) -> str:
        """What a distance in these features is called by."""
        ...

    def __call__(self, images: Images) -> Float[Array, "batch features"]:
        """Return one vector an image."""
        ...


class PixelFeatures(eqx.Module):
    """The pixels themselves, clipped to [-1, 1] and flattened."""

    @property
    def name(self) -> str:
        """Return "pixels"."""
        return "pixels"

    def __call__(self, images: Images) -> Float[Array, "batch features"]:
        """Return one row of pixels an image."""
        return jnp.clip(jnp.asarray(images), -1, 1).reshape(len(images), -1)


class InceptionFeatures(eqx.Module):
    """Inception's 2,048 features, those of the FID, after one of the `PREPROCESSING`.

    Greyscale images are repeated in the three colours.

    Args:
        network: the network; see `odelt_eqx.interop.load_inception`.
        preprocessing: "reference" for figures beside the reference's, "clean" for figures beside
            clean-fid's.

    Raises:
        InputError: there is no such preprocessing.
    """

    network: InceptionV3
    preprocessing: str = eqx.field(static=True, default="reference")

    def __check_init__(self) -> None:
        """Check the name."""
        if self.preprocessing not in PREPROCESSING:
            raise InputError(
                f"preprocessing must be one of {', '.join(PREPROCESSING)}; "
                f"got {self.preprocessing!r}"
            )

    @property
    def name(self) -> str:
        """Return "inception", or "inception-clean"."""
        return "inception" if self.preprocessing == "reference" else "inception-clean"

    @eqx.filter_jit
    def __call__(self, images: Images) -> Float[Array, "batch features"]:
        """Return the features of images of any size, in 1 or 3 channels.

        Raises:
            InputError: the images have another number of channels.
        """
        if images.shape[-1] not in (1, 3):
            raise InputError(f"Inception takes images of 1 or 3 channels; got {images.shape[-1]}")
        colours = jnp.broadcast_to(images, (*images.shape[:3], 3))
        return self.network(PREPROCESSING[self.preprocessing](colours))


class ClassifierFeatures(eqx.Module):
    """What a small classifier has before its classes; it names the classes as well.

    Args:
        network: the classifier, see `odelt_eqx.training.classifier`.
        digest: tells its weights from others': distances of two classifiers do not compare.
    """

    network: ConvNet
    digest: str = eqx.field(static=True)

    @property
    def name(self) -> str:
        """Return "classifier" and the digest."""
        return f"classifier-{self.digest}"

    @eqx.filter_jit
    def __call__(self, images: Images) -> Float[Array, "batch features"]:
        """Return one vector an image.

        Raises:
            InputError: the images are of another shape than the classifier's.
        """
        return self.network.features(images)

    def classify(self, rows: Float[np.ndarray, "batch features"]) -> Int[np.ndarray, " batch"]:
        """Return the likeliest class of each image, from its features."""
        return np.asarray(self.network.logits(jnp.asarray(rows)).argmax(-1))


@eqx.filter_jit
def _dealt_out(features: Features, images: Images) -> Float[Array, "batch features"]:
    return whole(features(evenly(whole(jnp.asarray(images)))))


def features_of(features: Features, images: Images) -> Float[np.ndarray, "batch features"]:
    """Return one vector an image; the devices of `jax.set_mesh`, if any, share the images."""
    return np.asarray(_dealt_out(features, images))


def as_the_reference(images: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Interpolate linearly between the nearest pixels, also where that skips some, then clip.

    Source: the reference's evaluation, and its script for the statistics of a data set.
    """
    shape = (len(images), SIDE, SIDE, 3)
    return jnp.clip(jax.image.resize(images, shape, "linear", antialias=False), -1, 1)


def as_clean_fid(images: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Resize by an antialiased cubic filter in float, clip, and shift as clean-fid does.

    Its network is shown `(p - 128) / 128` for pixels p in [0, 255], not `p / 127.5 - 1`. Images are
    not rounded to 8 bits on the way in, which clean-fid's files are.

    Source: arXiv 2104.11222; the filter is Pillow's, Keys' cubic with a = -1/2.
    """
    shape = (len(images), SIDE, SIDE, 3)
    resized = jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), -1, 1)
    return (127.5 * (resized + 1) - 128) / 128


PREPROCESSING: dict[str, Callable[[Array], Array]] = {
    "reference": as_the_reference,
    "clean": as_clean_fid,
}
"""How images become what Inception is shown."""
