"""The weights of the FID's Inception v3, from either of the two published files."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError
from odelt_eqx.interop.named import check_finite, check_names, flatten, listed, read_safetensors
from odelt_eqx.interop.unpickle import unpickle
from odelt_eqx.nn.convolution import Convolution
from odelt_eqx.nn.inception import FEATURES, InceptionV3, kernels

EPSILON = 1e-3
"""Added to the variances of the batch norms."""

TORCH = {
    "conv.weight": "conv/kernel",
    "bn.weight": "bn/scale",
    "bn.bias": "bn/bias",
    "bn.running_mean": "bn/mean",
    "bn.running_var": "bn/var",
}
"""PyTorch's names of the five arrays of a layer, and the names here."""

FID_CLASSES = 1008
"""Classes of the network that defines the FID; other Inceptions have 1,000."""


def load_inception(path: str | Path) -> InceptionV3:
    """Return the Inception v3 of the FID; nothing in the file is executed.

    Args:
        path: `inception_v3_weights_fid.pickle` of jax-fid, which the reference uses; or the weights
            of pytorch-fid (`pt_inception-2015-12-05`) saved as `.safetensors`. Without a
            classifier of 1,008 classes in them there is no Inception score.

    Raises:
        InputError: the file cannot be read, or holds another network.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights = _from_torch(read_safetensors(path), path)
        return check_finite(inception_from_weights(weights), path)
    if path.suffix in (".pth", ".pt"):
        raise InputError(
            f"{path} is a PyTorch file, which is not read: save its tensors as .safetensors"
        )
    content = unpickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not an Inception v3: it holds no layers by name")
    return check_finite(inception_from_weights(flatten(content, strict=False)), path)


def inception_from_weights(weights: Mapping[str, np.ndarray]) -> InceptionV3:
    """Return the network with these weights, each batch norm folded into its convolution.

    Args:
        weights: arrays by name as in jax-fid's file ("Mixed_5b/branch1x1/conv/kernel"), kernels
            (height, width, in, out). Of the classifiers ("fc", "AuxLogits") only "fc/kernel" is
            used, if it is (2048, 1008): the Inception score takes no bias.

    Raises:
        InputError: parameters are missing, left over or of another shape; all are listed.
    """
    used = {n: a for n, a in weights.items() if n.split("/")[0] not in ("fc", "AuxLogits")}
    names = list(kernels())
    wanted = [f"{name}/{part}" for name in names for part in TORCH.values()]
    check_names(wanted, used, "these are not the weights of the FID's Inception v3")
    layers, wrong = {}, []
    for name in names:
        arrays = [used[f"{name}/{part}"].astype(np.float64) for part in TORCH.values()]
        kernel, scale, bias, mean, variance = arrays
        if kernel.ndim != 4 or any(array.shape != kernel.shape[3:] for array in arrays[1:]):
            wrong.append(name)
            continue
        factor = scale / np.sqrt(variance + EPSILON)
        layers[name] = Convolution(
            jnp.asarray(kernel * factor, jnp.float32),
            jnp.asarray(bias - mean * factor, jnp.float32),
        )
    if wrong:
        raise InputError(f"layers whose kernel and norm do not match: {listed(wrong)}")
    kernel = weights.get("fc/kernel")
    if kernel is None or kernel.shape != (FEATURES, FID_CLASSES):
        return InceptionV3(layers)
    return InceptionV3(layers, jnp.asarray(kernel, jnp.float32))


def _from_torch(weights: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Return PyTorch's arrays under the names here, kernels (height, width, in, out)."""
    classifier = weights.get("fc.weight")
    classes = FID_CLASSES if classifier is None else math.prod(classifier.shape[:1])
    if classes != FID_CLASSES:
        raise InputError(
            f"{path} is an Inception v3 of {classes} classes; the FID is defined with "
            f"that of {FID_CLASSES}: convert pt_inception-2015-12-05 of pytorch-fid"
        )
    found = {} if classifier is None else {"fc/kernel": classifier.T}
    for name, array in weights.items():
        *layer, kind, part = name.split(".") if "." in name else ("", name)
        if part != "num_batches_tracked":
            renamed = "/".join([*layer, TORCH.get(f"{kind}.{part}", f"{kind}/{part}")])
            found[renamed] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return found
