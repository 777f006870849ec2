"""The weights of the FID's Inception v3, from either of the files in which they are published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from odelt_eqx.errors import InputError
from odelt_eqx.interop.named import check_names, listed, read_arrays
from odelt_eqx.interop.unpickle import unpickle
from odelt_eqx.nn.convolution import Convolution
from odelt_eqx.nn.inception import InceptionV3, kernels

EPSILON = 1e-3
"""Added to the variances of the batch norms."""

PARTS = ("conv/kernel", "bn/scale", "bn/bias", "bn/mean", "bn/var")
"""The five arrays of a layer."""

TORCH = {
    "conv.weight": "conv/kernel",
    "bn.weight": "bn/scale",
    "bn.bias": "bn/bias",
    "bn.running_mean": "bn/mean",
    "bn.running_var": "bn/var",
}
"""What PyTorch calls them."""

FID_CLASSES = 1008
"""Classes of the network that the FID is defined with; other Inceptions have 1,000."""


def load_inception(path: str | Path) -> InceptionV3:
    """Return the Inception v3 of the FID; nothing in the file is executed.

    Args:
        path: `inception_v3_weights_fid.pickle` of jax-fid, which the reference uses; or the weights
            of pytorch-fid (`pt_inception-2015-12-05`) saved as `.safetensors`. The classifier in
            them is left out.

    Raises:
        InputError: the file cannot be read, or holds another network.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return inception_from_weights(_from_torch(read_arrays(path), path))
    if path.suffix in (".pth", ".pt"):
        raise InputError(
            f"{path} is a PyTorch file, which is not read: save its tensors as .safetensors"
        )
    content = unpickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no Inception v3: it holds no layers by name")
    return inception_from_weights(_flatten(content))


def inception_from_weights(weights: Mapping[str, np.ndarray]) -> InceptionV3:
    """Return the network with these weights, each batch norm folded into its convolution.

    Args:
        weights: arrays by name as in jax-fid's file ("Mixed_5b/branch1x1/conv/kernel"), kernels
            (height, width, in, out). The classifiers ("fc", "AuxLogits") may be among them.

    Raises:
        InputError: parameters are missing, left over or of another shape; all are listed.
    """
    used = {n: a for n, a in weights.items() if n.split("/")[0] not in ("fc", "AuxLogits")}
    names = list(kernels())
    check_names(
        [f"{name}/{part}" for name in names for part in PARTS],
        used,
        "these are not the weights of the FID's Inception v3",
    )
    layers, wrong = {}, []
    for name in names:
        kernel, *norm = (np.asarray(used[f"{name}/{part}"], np.float64) for part in PARTS)
        if kernel.ndim != 4 or any(array.shape != kernel.shape[3:] for array in norm):
            wrong.append(name)
            continue
        scale, bias, mean, variance = norm
        factor = scale / np.sqrt(variance + EPSILON)
        layers[name] = Convolution(
            jnp.asarray(kernel * factor, jnp.float32),
            jnp.asarray(bias - mean * factor, jnp.float32),
        )
    if wrong:
        raise InputError(f"layers whose kernel and norm do not fit together: {listed(wrong)}")
    return InceptionV3(layers)


def _from_torch(weights: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Return the arrays under their other names, kernels (height, width, in, out)."""
    classifier = weights.get("fc.weight")
    if classifier is not None and classifier.shape[0] != FID_CLASSES:
        raise InputError(
            f"{path} is an Inception v3 of {classifier.shape[0]} classes; the FID is defined with "
            f"that of {FID_CLASSES}: convert pt_inception-2015-12-05 of pytorch-fid"
        )
    found = {}
    for name, array in weights.items():
        *layer, kind, part = name.split(".")
        if part != "num_batches_tracked":
            renamed = "/".join([*layer, TORCH.get(f"{kind}.{part}", f"{kind}/{part}")])
            found[renamed] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return found


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of nested mappings by slashed name; what is no array is left out."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray):
            flat[f"{prefix}{name}"] = value
    return flat
