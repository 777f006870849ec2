"""What samples are compared by: feature vectors of images; latents are decoded first."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odelt_eqx.data.latents import decode_in_chunks
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.classifier import WEIGHTS
from odelt_eqx.files import fingerprint
from odelt_eqx.interop import load_autoencoder
from odelt_eqx.interop.inception import load_inception
from odelt_eqx.interop.safetensors import read_module
from odelt_eqx.nn.autoencoder import Autoencoder
from odelt_eqx.nn.classifier import ConvNet, ConvNetConfig
from odelt_eqx.nn.inception import InceptionV3
from odelt_eqx.parallel import constrain_batch, replicate

Samples = Float[Array, "batch *shape"] | Float[np.ndarray, "batch *shape"]
Rows = Float[np.ndarray, "_ _"]
"""One feature vector per row."""

EDGES = "edges"
SIDE = 299  # height and width of Inception's input, in pixels


class Features(eqx.Module):
    """Feature vectors of samples; under different names they are not comparable.

    Args:
        name: name of the features.
        function: maps images in [-1, 1] or vectors, (batch, *shape), to (batch, features), or to
            these and spatial features, (batch, spatial).
        logits: maps features to (batch, classes), if they tell the classes of the data apart.
        score_logits: maps features to logits of other classes, for the Inception score.
    """

    name: str = eqx.field(static=True)
    function: Callable[[Array], Array | tuple[Array, Array]]
    logits: Callable[[Array], Array] | None = None
    score_logits: Callable[[Array], Array] | None = None

    def __call__(self, samples: Samples) -> Float[np.ndarray, "batch features"]:
        """Return one feature vector per sample; the devices of `jax.set_mesh` share the samples."""
        return self.parts(samples)[0]

    def parts(self, samples: Samples) -> list[Float[np.ndarray, "batch _"]]:
        """Return the features of samples and, if there are some, their spatial features."""
        found = _distributed(self.function, jnp.asarray(samples))
        return [np.asarray(rows) for rows in jax.tree.leaves(found)]

    def widths(self, shape: tuple[int, ...]) -> list[int]:
        """Return the number of features of a sample of `shape`, and that of spatial features."""
        found = eqx.filter_eval_shape(self.function, jnp.zeros((1, *shape)))
        return [rows.shape[1] for rows in jax.tree.leaves(found)]


def spatial_name(name: str) -> str:
    """Return the name of the spatial features beside those of a name."""
    return f"{name} spatial"


@eqx.filter_jit
def _distributed(
    function: Callable[[Array], Array | tuple[Array, Array]], samples: Array
) -> Array | tuple[Array, Array]:
    return replicate(function(constrain_batch(replicate(samples))))


def pixels(samples: Float[Array, "batch *shape"]) -> Float[Array, "batch features"]:
    """Return the pixels of images, clipped to [-1, 1], or the values of vectors as they are."""
    if samples.ndim == 2:
        return samples
    return jnp.clip(samples, -1, 1).reshape(len(samples), -1)


def coarse_pixels(
    side: int, images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch features"]:
    """Return the pixels of images that are clipped to [-1, 1] and averaged down to a square."""
    shape = (len(images), side, side, images.shape[-1])
    return jax.image.resize(jnp.clip(images, -1, 1), shape, "linear").reshape(len(images), -1)


def edge_strength(
    side: int, images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch features"]:
    """Return how much neighbouring pixels differ, averaged down to at most a square of `side`.

    It is the norm of the differences to the pixels on the right and below, of the mean over the
    channels of images that are clipped to [-1, 1].
    """
    grey = jnp.clip(images, -1, 1).mean(axis=-1)
    right = jnp.diff(grey, axis=2)[:, :-1]
    below = jnp.diff(grey, axis=1)[:, :, :-1]
    strength = jnp.sqrt(right**2 + below**2)[..., None]
    if max(strength.shape[1:3]) > side:
        shape = (len(images), side, side, 1)
        strength = jax.image.resize(strength, shape, "linear")
    return strength.reshape(len(images), -1)


def inception_features(
    network: InceptionV3, resize: Callable[[Array], Array], images: Float[Array, "batch *shape"]
) -> tuple[Float[Array, "batch 2048"], Float[Array, "batch spatial"]]:
    """Return Inception's features of images of any size; grey ones are repeated in three channels.

    Raises:
        InputError: the samples are not images of 1 or 3 channels.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"Inception takes images of 1 or 3 channels; got {images.shape[1:]}: if these are "
            "latents, name the weights that decode them by the option autoencoder"
        )
    return network(resize(jnp.broadcast_to(images, (*images.shape[:3], 3))))


def resize_as_reference(images: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Resize by linear interpolation without antialiasing, then clip.

    Source: the reference's evaluation, and its script for the statistics of a data set.
    """
    shape = (len(images), SIDE, SIDE, 3)
    return jnp.clip(jax.image.resize(images, shape, "linear", antialias=False), -1, 1)


def resize_as_clean_fid(images: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Resize by an antialiased cubic filter, clip, and shift as clean-fid does.

    Its network takes `(p - 128) / 128` for pixels p in [0, 255], not `p / 127.5 - 1`. Unlike
    clean-fid's files, images are not rounded to 8 bits first.

    Source: arXiv 2104.11222; the filter is Pillow's, Keys' cubic with a = -1/2.
    """
    shape = (len(images), SIDE, SIDE, 3)
    resized = jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), -1, 1)
    return (127.5 * (resized + 1) - 128) / 128


def resize_as_adm(images: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Round to 8 bits, resize by linear interpolation with the first pixels aligned, and shift.

    Output pixel i lies at i / 299 of the height or width, without half a pixel on either side. So
    does TensorFlow's graph of 2015 that ADM's evaluator runs on images in 8 bits, and it takes
    `(p - 128) / 128`.
    """
    x: Array = jnp.round(127.5 * (jnp.clip(images, -1, 1) + 1))
    for axis in (1, 2):
        size = x.shape[axis]
        position = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
        first = position.astype(int)
        last = np.minimum(first + 1, size - 1)
        weight = jnp.asarray(position - first).reshape(-1, *(1,) * (3 - axis))
        x = (1 - weight) * jnp.take(x, first, axis) + weight * jnp.take(x, last, axis)
    return (x - 128) / 128


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pixels of images, averaged down to at most a few hundred, or the values of vectors.

    A Fréchet distance costs the cube of the number of features, and needs more samples than that.
    """

    def open(self, shape: tuple[int, ...]) -> Features:
        """Return the features of samples of `shape`."""
        if len(shape) != 3:
            return Features("values", pixels)
        side = 16 if shape[2] == 1 else 8
        if max(shape[:2]) <= side:
            return Features("pixels", pixels)
        return Features(f"pixels {side}×{side}", eqx.Partial(coarse_pixels, side))


@dataclasses.dataclass(frozen=True)
class Edges:
    """The edges of images, averaged down to at most 256 numbers.

    Nothing was trained for them, and they hold what coarse pixels do not.
    """

    def open(self, shape: tuple[int, ...]) -> Features:
        """Return the features of samples of `shape`; an InputError if they are no images."""
        if len(shape) != 3 or min(shape[:2]) < 2:
            raise InputError(f"edges are features of images of 2 x 2 pixels or more; got {shape}")
        return Features(EDGES, eqx.Partial(edge_strength, 16))


@dataclasses.dataclass(frozen=True)
class Inception:
    """The features of the FID, with those of the sFID and of the Inception score.

    Args:
        path: the weights, `inception_v3_weights_fid.pickle` or a `.safetensors` file.
        preprocessing: how images are resized to 299 x 299: as the reference does, as clean-fid, or
            as ADM's evaluator, which SiT and REPA use.
    """

    path: Path
    preprocessing: Literal["reference", "clean", "adm"] = "reference"

    def open(self, shape: tuple[int, ...]) -> Features:
        """Return the features of samples of `shape`; an InputError if there are no weights."""
        network = load_inception(self.path)
        name, resize = {
            "reference": ("inception", resize_as_reference),
            "clean": ("inception-clean", resize_as_clean_fid),
            "adm": ("inception-adm", resize_as_adm),
        }[self.preprocessing]
        function = eqx.Partial(inception_features, network, resize)
        score_logits = None if network.classifier is None else network.logits
        return Features(name, function, score_logits=score_logits)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The features of a classifier trained on the data set itself, by `odelt classifier`.

    Args:
        path: its folder, or its `.safetensors` file.
    """

    path: Path

    def open(self, shape: tuple[int, ...]) -> Features:
        """Return the features of samples of `shape`; an InputError if there are no weights."""
        path = self.path / WEIGHTS if self.path.is_dir() else self.path
        net = read_module(path, ConvNet, ConvNetConfig)
        return Features(f"classifier-{fingerprint(net)[:8]}", net.features, net.logits)


FeaturesConfig = Pixels | Edges | Inception | Classifier


def open_autoencoder(path: str | None, shape: tuple[int, ...]) -> Autoencoder | None:
    """Return the autoencoder that decodes samples of `shape`; None if `path` is None.

    Raises:
        InputError: the weights cannot be read, or decode latents of another shape.
    """
    if path is None:
        return None
    autoencoder = load_autoencoder(path)
    channels = autoencoder.config.latent_channels
    if len(shape) != 3 or shape[2] != channels:
        raise InputError(
            f"{path} decodes latents of {channels} channels; the network makes shape {shape}"
        )
    return autoencoder


def decoded_shape(autoencoder: Autoencoder | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a sample of `shape` when it is decoded."""
    if autoencoder is None:
        return shape
    return eqx.filter_eval_shape(autoencoder.decode, jnp.zeros((1, *shape))).shape[1:]


def decode(autoencoder: Autoencoder | None, samples: Samples) -> Float[np.ndarray, "batch *_"]:
    """Return latents as images, about in [-1, 1]; without an autoencoder, samples as they are."""
    return np.asarray(samples) if autoencoder is None else decode_in_chunks(autoencoder, samples)
