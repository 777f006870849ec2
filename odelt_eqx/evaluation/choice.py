"""Which features pictures are compared by, as typed values that a command line can choose."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from odelt_eqx.evaluation.features import (
    ClassifierFeatures,
    Features,
    InceptionFeatures,
    PixelFeatures,
)
from odelt_eqx.interop.inception import load_inception
from odelt_eqx.interop.safetensors import read_module
from odelt_eqx.nn.classifier import ConvNet, ConvNetConfig
from odelt_eqx.training.classifier import WEIGHTS


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pixels themselves."""

    def open(self) -> Features:
        """Return the features."""
        return PixelFeatures()


@dataclasses.dataclass(frozen=True)
class Inception:
    """Those of the FID.

    Args:
        path: the weights, `inception_v3_weights_fid.pickle` or a `.safetensors` file.
        preprocessing: how images are brought to 299 x 299: as the published code or as clean-fid.
    """

    path: Path
    preprocessing: Literal["reference", "clean"] = "reference"

    def open(self) -> Features:
        """Return the features; an InputError if the weights cannot be read."""
        return InceptionFeatures(load_inception(self.path), self.preprocessing)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Those of a classifier trained on the data set itself, see scripts/classifier.py.

    Args:
        path: its folder, or its `.safetensors` file.
    """

    path: Path

    def open(self) -> Features:
        """Return the features; an InputError if the weights cannot be read."""
        path = self.path / WEIGHTS if self.path.is_dir() else self.path
        network = read_module(path, ConvNet, ConvNetConfig)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(network):
            digest.update(np.asarray(leaf).tobytes())
        return ClassifierFeatures(network, digest.hexdigest()[:8])


FeaturesConfig = Pixels | Inception | Classifier


def called(distance: Literal["Fréchet", "Kernel"], features: str) -> str:
    """Return what a distance in these features is called: FID and KID are Inception's alone."""
    short = {"Fréchet": "FID", "Kernel": "KID"}[distance]
    if features == "inception":
        return short
    if features == "inception-clean":
        return f"{short} (clean)"
    return f"{distance} distance ({features})"
