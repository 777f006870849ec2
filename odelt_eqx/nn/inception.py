"""Inception v3 as the FID uses it: images to the 2,048 features of its last pooling layer."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odelt_eqx.errors import InputError
from odelt_eqx.nn.convolution import Convolution

FEATURES = 2048
SMALLEST = 75
"""Height and width below which nothing is left to pool, in pixels."""

Images = Float[Array, "_ _ _ _"]
Layer = Callable[[Images, str, int, int, int, bool], Images]
"""A convolution with its norm and ReLU: images, name, rows, columns, stride, whether padded."""

Step = tuple[str, int, int] | tuple[str, int, int, int]
"""Name, rows and columns of a layer, and its stride if it is not 1."""


class InceptionV3(eqx.Module):
    """The network of the FID; its 94 layers have their published names ("Mixed_5b/branch1x1").

    The widths are those of the weights it is made from; batch norms are folded into them.

    Args:
        layers: the layers by name.

    Raises:
        InputError: a layer is missing, left over, or does not fit those before it.

    Source: arXiv 1512.00567, with the pooling of the graph of 2015-12-05 that the FID was defined
    with (arXiv 1706.08500): means leave the padding out, and the last block takes a maximum.
    """

    layers: dict[str, Convolution]

    def __check_init__(self) -> None:
        """Check that the layers are those of the network and fit together."""
        wanted = kernels()
        wrong = sorted(wanted.keys() ^ self.layers.keys()) or [
            name for name, size in wanted.items() if self.layers[name].weight.shape[:2] != size
        ]
        if wrong:
            raise InputError(
                "layers are missing, left over or of another kernel than Inception v3's: "
                f"{wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''}; "
                "give the weights of the FID network"
            )
        image = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
        width = eqx.filter_eval_shape(self, image).shape[-1]
        if width != FEATURES:
            raise InputError(f"Inception v3 has {FEATURES} features; these weights give {width}")

    @eqx.filter_jit
    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch features"]:
        """Return the features of images.

        Args:
            images: in [-1, 1], 299 x 299 where figures are to be compared with others'.

        Returns:
            (batch, 2048), computed in full float32 also where hardware would round products.

        Raises:
            InputError: the images are smaller than 75 x 75.
        """
        if min(images.shape[1:3]) < SMALLEST:
            raise InputError(
                f"images must be at least {SMALLEST} pixels high and wide; "
                f"got {images.shape[1]} x {images.shape[2]}"
            )
        with jax.default_matmul_precision("highest"):
            return _features(self._layer, images)

    def _layer(
        self, x: Images, name: str, rows: int, columns: int, stride: int, padded: bool
    ) -> Images:
        del rows, columns  # as the weight has them
        convolution = self.layers[name]
        if x.shape[-1] != convolution.weight.shape[2]:
            raise InputError(
                f"{name} takes {convolution.weight.shape[2]} channels, but the layers before it "
                f"give {x.shape[-1]}: give the weights of the FID network"
            )
        return jax.nn.relu(convolution(x, stride, None if padded else [(0, 0), (0, 0)]))


def kernels() -> dict[str, tuple[int, int]]:
    """Return height and width of the kernel of every layer, by its published name."""
    found = {}

    def record(x: Images, name: str, rows: int, columns: int, stride: int, padded: bool) -> Images:
        found[name] = (rows, columns)
        top, left = (0, 0) if padded else (rows - 1, columns - 1)
        return x[:, top::stride, left::stride, :1]

    image = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 1), jnp.float32)
    jax.eval_shape(partial(_features, record), image)
    return found


def _features(layer: Layer, x: Images) -> Float[Array, "batch features"]:
    """Return what the network of these layers computes."""
    x = layer(x, "Conv2d_1a_3x3", 3, 3, 2, False)
    x = layer(x, "Conv2d_2a_3x3", 3, 3, 1, False)
    x = layer(x, "Conv2d_2b_3x3", 3, 3, 1, True)
    x = layer(_halved(x), "Conv2d_3b_1x1", 1, 1, 1, True)
    x = _halved(layer(x, "Conv2d_4a_3x3", 3, 3, 1, False))
    for name, block in BLOCKS.items():
        x = jnp.concatenate(block(x, partial(_chain, layer, name)), axis=-1)
    return x.mean((1, 2))


def _chain(layer: Layer, block: str, x: Images, *steps: Step) -> Images:
    """Apply layers of a block in turn; those with a stride are not padded."""
    for name, rows, columns, *rest in steps:
        stride = rest[0] if rest else 1
        x = layer(x, f"{block}/{name}", rows, columns, stride, stride == 1)
    return x


Chain = Callable[..., Images]
"""`_chain` of one block: images and steps."""


def _block_a(x: Images, chain: Chain) -> list[Images]:
    return [
        chain(x, ("branch1x1", 1, 1)),
        chain(x, ("branch5x5_1", 1, 1), ("branch5x5_2", 5, 5)),
        chain(x, ("branch3x3dbl_1", 1, 1), ("branch3x3dbl_2", 3, 3), ("branch3x3dbl_3", 3, 3)),
        chain(_mean(x), ("branch_pool", 1, 1)),
    ]


def _block_b(x: Images, chain: Chain) -> list[Images]:
    return [
        chain(x, ("branch3x3", 3, 3, 2)),
        chain(x, ("branch3x3dbl_1", 1, 1), ("branch3x3dbl_2", 3, 3), ("branch3x3dbl_3", 3, 3, 2)),
        _halved(x),
    ]


def _block_c(x: Images, chain: Chain) -> list[Images]:
    double = [(f"branch7x7dbl_{i}", *(((7, 1), (1, 7))[i % 2])) for i in (2, 3, 4, 5)]
    return [
        chain(x, ("branch1x1", 1, 1)),
        chain(x, ("branch7x7_1", 1, 1), ("branch7x7_2", 1, 7), ("branch7x7_3", 7, 1)),
        chain(x, ("branch7x7dbl_1", 1, 1), *double),
        chain(_mean(x), ("branch_pool", 1, 1)),
    ]


def _block_d(x: Images, chain: Chain) -> list[Images]:
    seven = (("branch7x7x3_1", 1, 1), ("branch7x7x3_2", 1, 7), ("branch7x7x3_3", 7, 1))
    return [
        chain(x, ("branch3x3_1", 1, 1), ("branch3x3_2", 3, 3, 2)),
        chain(x, *seven, ("branch7x7x3_4", 3, 3, 2)),
        _halved(x),
    ]


def _block_e(x: Images, chain: Chain, pool: Callable[[Images], Images]) -> list[Images]:
    three = chain(x, ("branch3x3_1", 1, 1))
    double = chain(x, ("branch3x3dbl_1", 1, 1), ("branch3x3dbl_2", 3, 3))
    return [
        chain(x, ("branch1x1", 1, 1)),
        chain(three, ("branch3x3_2a", 1, 3)),
        chain(three, ("branch3x3_2b", 3, 1)),
        chain(double, ("branch3x3dbl_3a", 1, 3)),
        chain(double, ("branch3x3dbl_3b", 3, 1)),
        chain(pool(x), ("branch_pool", 1, 1)),
    ]


def _halved(x: Images) -> Images:
    """Return the largest of every 3 x 3 cells, at every second one."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def _largest(x: Images) -> Images:
    """Return the largest of the 3 x 3 cells around each one."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _mean(x: Images) -> Images:
    """Return the mean of the up to 3 x 3 cells around each one."""
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    places = (np.arange(size) for size in x.shape[1:3])
    rows, columns = (3.0 - (place == 0) - (place == len(place) - 1) for place in places)
    return total / np.outer(rows, columns).astype(np.float32)[:, :, None]


BLOCKS: dict[str, Callable[[Images, Chain], list[Images]]] = {
    "Mixed_5b": _block_a,
    "Mixed_5c": _block_a,
    "Mixed_5d": _block_a,
    "Mixed_6a": _block_b,
    "Mixed_6b": _block_c,
    "Mixed_6c": _block_c,
    "Mixed_6d": _block_c,
    "Mixed_6e": _block_c,
    "Mixed_7a": _block_d,
    "Mixed_7b": partial(_block_e, pool=_mean),
    "Mixed_7c": partial(_block_e, pool=_largest),
}
"""The blocks from the first to the last; each returns what is put side by side."""
