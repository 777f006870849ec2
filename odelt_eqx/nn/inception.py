"""Inception v3 as the FID uses it: images to pooled and to spatial features, and to classes."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odelt_eqx.errors import InputError
from odelt_eqx.nn.convolution import Convolution

FEATURES = 2048
SPATIAL = ("Mixed_6d", 7)
"""Block and number of its first channels that are the spatial features."""
SMALLEST = 75
"""Smallest height and width of an image, in pixels."""

Images = Float[Array, "_ _ _ _"]
Step = tuple[str, int, int] | tuple[str, int, int, int] | Callable[[Images], Images]
"""Name, rows and columns of a layer and its stride if it is not 1; or a pooling function."""


class InceptionV3(eqx.Module):
    """The network of the FID; its 94 layers have their published names ("Mixed_5b/branch1x1").

    The widths are those of the weights; batch norms are folded into them.

    Args:
        layers: the layers by name.
        classifier: the kernel of the layer that tells ImageNet's classes apart, if it is known.

    Raises:
        InputError: a layer is missing, left over, or does not fit those before it.

    Source: arXiv 1512.00567, with the pooling of the graph of 2015-12-05 that defines the FID
    (arXiv 1706.08500): means exclude the padding, and the last block takes a maximum.
    """

    layers: dict[str, Convolution]
    classifier: Float[Array, "2048 classes"] | None = None

    def __check_init__(self) -> None:
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
        width = eqx.filter_eval_shape(self, image)[0].shape[-1]
        if width != FEATURES:
            raise InputError(f"Inception v3 has {FEATURES} features; these weights give {width}")

    @eqx.filter_jit
    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch spatial"]]:
        """Return the features of images, of the last pooling layer and of positions.

        The spatial ones are seven channels at each of 17 x 17 positions, `mixed_6/conv` in the
        graph of 2015: `Mixed_6d/branch1x1` here.

        Args:
            images: in [-1, 1], 299 x 299 for results comparable with others'.

        Returns:
            (batch, 2048) and, of 299 x 299 pixels, (batch, 2023), computed in full float32 even
            where hardware would round products.

        Source of the spatial ones: arXiv 2103.03841, as the evaluator of
        github.com/openai/guided-diffusion takes them.

        Raises:
            InputError: the images are smaller than 75 x 75.
        """
        if min(images.shape[1:3]) < SMALLEST:
            raise InputError(
                f"images must be at least {SMALLEST} pixels high and wide; "
                f"got {images.shape[1]} x {images.shape[2]}"
            )
        with jax.default_matmul_precision("highest"):
            x = spatial = self._apply(images, STEM)
            for block, branches in BLOCKS.items():
                outputs = [self._apply(x, branch, f"{block}/") for branch in branches]
                x = jnp.concatenate(outputs, axis=-1)
                if block == SPATIAL[0]:
                    spatial = x[..., : SPATIAL[1]].reshape(len(x), -1)
            return x.mean((1, 2)), spatial

    def logits(self, features: Float[Array, "batch 2048"]) -> Float[Array, "batch classes"]:
        """Return the logits of pooled features without a bias, as the Inception score takes them.

        Raises:
            InputError: the classifier is not known.
        """
        if self.classifier is None:
            raise InputError("these weights of Inception v3 have no classifier")
        return jnp.matmul(features, self.classifier, precision="highest")

    def _apply(self, x: Images, steps: tuple[Step, ...], prefix: str = "") -> Images:
        """Apply pooling and layers, each with ReLU, one after the other."""
        for step in steps:
            if callable(step):
                x = step(x)
                continue
            name = prefix + step[0]
            stride = step[3] if len(step) > 3 else 1
            layer = self.layers[name]
            if x.shape[-1] != layer.weight.shape[2]:
                raise InputError(
                    f"{name} takes {layer.weight.shape[2]} channels, but the layers before it "
                    f"give {x.shape[-1]}: give the weights of the FID network"
                )
            valid = stride > 1 or name in UNPADDED
            x = jax.nn.relu(layer(x, stride, [(0, 0), (0, 0)] if valid else None))
        return x


def kernels() -> dict[str, tuple[int, int]]:
    """Return height and width of the kernel of each layer, by its published name."""
    branches = [("", STEM)]
    branches += [(f"{block}/", branch) for block, found in BLOCKS.items() for branch in found]
    return {
        prefix + step[0]: (step[1], step[2])
        for prefix, branch in branches
        for step in branch
        if not callable(step)
    }


def _downsample(x: Images) -> Images:
    """Return the maximum of 3 x 3 cells, with stride 2."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def _max(x: Images) -> Images:
    """Return the maximum of the 3 x 3 cells around each one."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _mean(x: Images) -> Images:
    """Return the mean of the 3 x 3 cells around each one, without the padding."""
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    positions = (np.arange(size) for size in x.shape[1:3])
    rows, columns = (3.0 - (i == 0) - (i == len(i) - 1) for i in positions)
    return total / np.outer(rows, columns).astype(np.float32)[:, :, None]


STEM = (
    ("Conv2d_1a_3x3", 3, 3, 2),
    ("Conv2d_2a_3x3", 3, 3),
    ("Conv2d_2b_3x3", 3, 3),
    _downsample,
    ("Conv2d_3b_1x1", 1, 1),
    ("Conv2d_4a_3x3", 3, 3),
    _downsample,
)
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
"""Layers with stride 1 that are not padded; those with a larger stride never are."""

A = (
    (("branch1x1", 1, 1),),
    (("branch5x5_1", 1, 1), ("branch5x5_2", 5, 5)),
    (("branch3x3dbl_1", 1, 1), ("branch3x3dbl_2", 3, 3), ("branch3x3dbl_3", 3, 3)),
    (_mean, ("branch_pool", 1, 1)),
)
B = (
    (("branch3x3", 3, 3, 2),),
    (("branch3x3dbl_1", 1, 1), ("branch3x3dbl_2", 3, 3), ("branch3x3dbl_3", 3, 3, 2)),
    (_downsample,),
)
C = (
    (("branch1x1", 1, 1),),
    (("branch7x7_1", 1, 1), ("branch7x7_2", 1, 7), ("branch7x7_3", 7, 1)),
    (
        ("branch7x7dbl_1", 1, 1),
        *(("branch7x7dbl_2", 7, 1), ("branch7x7dbl_3", 1, 7)),
        *(("branch7x7dbl_4", 7, 1), ("branch7x7dbl_5", 1, 7)),
    ),
    (_mean, ("branch_pool", 1, 1)),
)
D = (
    (("branch3x3_1", 1, 1), ("branch3x3_2", 3, 3, 2)),
    (
        *(("branch7x7x3_1", 1, 1), ("branch7x7x3_2", 1, 7)),
        *(("branch7x7x3_3", 7, 1), ("branch7x7x3_4", 3, 3, 2)),
    ),
    (_downsample,),
)
# Two pairs of branches share their first layers, which XLA computes once.
E = (
    (("branch1x1", 1, 1),),
    (("branch3x3_1", 1, 1), ("branch3x3_2a", 1, 3)),
    (("branch3x3_1", 1, 1), ("branch3x3_2b", 3, 1)),
    (("branch3x3dbl_1", 1, 1), ("branch3x3dbl_2", 3, 3), ("branch3x3dbl_3a", 1, 3)),
    (("branch3x3dbl_1", 1, 1), ("branch3x3dbl_2", 3, 3), ("branch3x3dbl_3b", 3, 1)),
)
BLOCKS: dict[str, tuple[tuple[Step, ...], ...]] = {
    **{"Mixed_5b": A, "Mixed_5c": A, "Mixed_5d": A, "Mixed_6a": B},
    **{"Mixed_6b": C, "Mixed_6c": C, "Mixed_6d": C, "Mixed_6e": C, "Mixed_7a": D},
    "Mixed_7b": (*E, (_mean, ("branch_pool", 1, 1))),
    "Mixed_7c": (*E, (_max, ("branch_pool", 1, 1))),
}
"""The branches of each block, from first to last; their outputs are concatenated."""
