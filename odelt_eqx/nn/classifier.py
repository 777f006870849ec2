"""A small convolutional classifier: what it sees in pictures is what others are compared by."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError
from odelt_eqx.nn.convolution import Convolution, convolution

SMALLEST = 7
"""Pixels that halving stops at."""


@dataclasses.dataclass(frozen=True)
class ConvNetConfig:
    """Shape of a classifier.

    Args:
        image_shape: (height, width, channels) of its images.
        num_classes: classes it tells apart.
        width: channels of the first convolution; they double as the image halves, up to four times.
        features: values in the layer before the classes.

    Raises:
        InputError: a number is less than 1.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    width: int = 32
    features: int = 128

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_classes", "width", "features"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if min(self.image_shape) < 1:
            raise InputError(f"image_shape must be positive; got {self.image_shape}")


class ConvNet(eqx.Module):
    """3 x 3 convolutions that halve the image until it is small, then two dense layers.

    Args:
        config: the shape.
        key: decides the first weights.
    """

    config: ConvNetConfig = eqx.field(static=True)
    convolutions: list[Convolution]
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, config: ConvNetConfig, *, key: Key[Array, ""]):
        """Draw the weights."""
        self.config = config
        height, width, inputs = config.image_shape
        keys = iter(jax.random.split(key, 32))
        self.convolutions = [convolution(inputs, config.width, 3, next(keys))]
        channels = config.width
        while max(height, width) > SMALLEST:
            wider = min(2 * channels, 4 * config.width)
            self.convolutions.append(convolution(channels, wider, 3, next(keys)))
            height, width, channels = -(-height // 2), -(-width // 2), wider
        size = height * width * channels
        self.hidden = eqx.nn.Linear(size, config.features, key=next(keys))
        self.out = eqx.nn.Linear(config.features, config.num_classes, key=next(keys))

    def features(
        self,
        images: Float[Array, "batch height width channels"]
        | Float[np.ndarray, "batch height width channels"],
    ) -> Float[Array, "batch features"]:
        """Return the values before the classes, none negative.

        Args:
            images: in [-1, 1]; what lies outside is clipped.

        Raises:
            InputError: the images are of another shape than the config's.
        """
        if images.shape[1:] != self.config.image_shape:
            raise InputError(
                f"this classifier takes images of shape {self.config.image_shape}; "
                f"got {images.shape[1:]}"
            )
        x = jnp.clip(jnp.asarray(images), -1, 1)
        for index, layer in enumerate(self.convolutions):
            x = jax.nn.relu(layer(x, stride=2 if index else 1))
        return jax.nn.relu(jax.vmap(self.hidden)(x.reshape(len(x), -1)))

    def logits(self, features: Float[Array, "batch features"]) -> Float[Array, "batch classes"]:
        """Return a score a class from what `features` returns."""
        return jax.vmap(self.out)(features)
