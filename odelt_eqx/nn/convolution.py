"""Convolutions, channels last: the layout that CPUs and GPUs run without a transpose."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Convolution(eqx.Module):
    """A 2-D convolution with bias over (batch, height, width, channels).

    Its weight is (height, width, in, out), "HWIO".
    """

    weight: Float[Array, "rows columns in out"]
    bias: Float[Array, " out"]

    def __call__(
        self,
        x: Float[Array, "batch height width in"],
        stride: int = 1,
        padding: Sequence[tuple[int, int]] | None = None,
    ) -> Float[Array, "batch height2 width2 out"]:
        """Convolve.

        Args:
            x: images, channels last.
            stride: step along both axes.
            padding: zeros before and after, along height and width; half the kernel by default, so
                that an odd kernel with stride 1 keeps the size.
        """
        if padding is None:
            padding = [(size // 2, size // 2) for size in self.weight.shape[:2]]
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, self.weight, (stride, stride), padding, dimension_numbers=layout
        )
        return y + self.bias


def convolution(inputs: int, outputs: int, size: int, key: Key[Array, ""]) -> Convolution:
    """Return a square kernel of `size`, drawn with variance 1 / fan-in, and a bias of zero."""
    init = jax.nn.initializers.lecun_normal(in_axis=(0, 1, 2))
    return Convolution(init(key, (size, size, inputs, outputs), jnp.float32), jnp.zeros(outputs))
