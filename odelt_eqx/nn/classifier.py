"""A small convolutional classifier, whose last hidden layer gives features of images."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError, check_range
from odelt_eqx.nn.config import MOST_COUNT, MOST_VALUES
from odelt_eqx.nn.convolution import Convolution, convolution
from odelt_eqx.serialize import set_declared

SMALLEST_SIDE = 7
"""Images are halved until no side is longer than this, in pixels."""


@dataclasses.dataclass(frozen=True)
class ConvNetConfig:
    """Shape of a classifier.

    Args:
        image_shape: (height, width, channels) of its images.
        num_classes: number of classes.
        width: channels of the first convolution; they double as the image halves, up to four times.
        features: size of the last hidden layer.

    Raises:
        InputError: a number is no whole one, less than 1, or far too large.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    width: int = 32
    features: int = 128

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "num_classes", "width", "features", least=1)
        check_range(self, "num_classes", "width", "features", most=MOST_COUNT)
        if min(self.image_shape) < 1 or math.prod(self.image_shape) > MOST_VALUES:
            raise InputError(
                f"image_shape must be positive, of at most {MOST_VALUES:,} values; "
                f"got {self.image_shape}"
            )


class ConvNet(eqx.Module):
    """3 x 3 convolutions that halve the image until it is small, then two dense layers.

    Args:
        config: the shape.
        key: decides the weights.
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
        while max(height, width) > SMALLEST_SIDE:
            wider = min(2 * channels, 4 * config.width)
            self.convolutions.append(convolution(channels, wider, 3, next(keys)))
            height, width, channels = -(-height // 2), -(-width // 2), wider
        size = height * width * channels
        self.hidden = eqx.nn.Linear(size, config.features, key=next(keys))
        self.out = eqx.nn.Linear(config.features, config.num_classes, key=next(keys))

    def features(
        self, images: Float[Array, "batch *shape"] | Float[np.ndarray, "batch *shape"]
    ) -> Float[Array, "batch features"]:
        """Return the last hidden layer, rectified.

        Args:
            images: (batch, height, width, channels), clipped to [-1, 1].

        Raises:
            InputError: the images do not have the config's shape.
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
        """Return one logit per class from what `features` returns."""
        return jax.vmap(self.out)(features)

    def scale_features(self, scale: Float[Array, " features"]) -> "ConvNet":
        """Return a network with the same logits whose features are multiplied by `scale` > 0.

        Features are rectified, so scaling the layer before them scales them.
        """
        assert self.hidden.bias is not None  # for the type checker
        return eqx.tree_at(
            lambda n: (n.hidden.weight, n.hidden.bias, n.out.weight),
            self,
            (
                self.hidden.weight * scale[:, None],
                self.hidden.bias * scale,
                self.out.weight / scale,
            ),
        )
