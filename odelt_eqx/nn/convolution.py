"""Convolutions, channels last: the layout in which CPUs and GPUs run them without a transpose."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Convolution(eqx.Module):
    """A 2-D convolution with bias over (batch, height, width, channels).

    Its weight is (height, width, in, out), "HWIO"; loaders transpose once what is stored otherwise.
    """

    weight: Float[Array, "height width in out"]
    bias: Float[Array, " out"]

    def __init__(self, inputs: int, outputs: int, size: int, *, key: Key[Array, ""]):
        """Draw a square kernel of `size` with variance 1 / fan-in; the bias is zero."""
        init = jax.nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.weight = init(key, (size, size, inputs, outputs), jnp.float32)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "batch height width in"]) -> Float[Array, "batch h w out"]:
        """Convolve; an odd kernel keeps the size of the image, padded with zeros."""
        height, width = self.weight.shape[:2]
        padding = [(height // 2, height // 2), (width // 2, width // 2)]
        return convolve(x, self.weight, 1, padding) + self.bias


def convolve(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "rows columns in out"],
    stride: int,
    padding: list[tuple[int, int]],
) -> Float[Array, "batch h w out"]:
    """Return the cross-correlation of `x` with `kernel`, without bias.

    Args:
        x: images, channels last.
        kernel: (height, width, in, out).
        stride: step in both directions.
        padding: zeros before and after, for the height and for the width.
    """
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
