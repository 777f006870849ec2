"""The FID's Inception v3: the numbers of the reference's, recorded in `tests/golden`."""

import json
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from odelt_eqx.errors import InputError
from odelt_eqx.interop import load_inception
from odelt_eqx.interop.inception import TORCH, inception_from_weights
from odelt_eqx.nn.inception import BLOCKS, STEM, InceptionV3, _mean, kernels
from tests.conftest import GOLDEN, golden_weight

FILE = np.load(GOLDEN / "inception.npz")
SHAPES = json.loads(str(FILE["names"]))


@pytest.fixture(scope="module")
def weights():
    return {name: golden_weight(name, shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def network(weights):
    return inception_from_weights(weights)


CLASSIFIER = np.random.default_rng(1).standard_normal((2048, 1008)).astype(np.float32)


def as_pickle(weights, path):
    """Nested dictionaries with a classifier in them, as jax-fid's file has."""
    tree = {"fc": {"kernel": CLASSIFIER, "bias": np.ones(1008, np.float32), "note": None}}
    for name, array in weights.items():
        *parents, leaf = name.split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = array
    path.write_bytes(pickle.dumps(tree))


def as_torch(weights, path, classes=1008):
    """Dotted names and kernels (out, in, height, width), as pytorch-fid's file has."""
    other = {ours: theirs for theirs, ours in TORCH.items()}
    kernel = np.ascontiguousarray(CLASSIFIER.T[:classes])
    tensors = {"fc.weight": kernel, "fc.bias": np.ones(classes, np.float32)}
    for name, array in weights.items():
        *layer, kind, part = name.split("/")
        theirs = ".".join([*layer, other[f"{kind}/{part}"]])
        kernel = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        tensors[theirs] = np.ascontiguousarray(kernel)
        tensors[".".join([*layer, "bn.num_batches_tracked"])] = np.zeros((), np.int64)
    safetensors.numpy.save_file(tensors, path)


def test_the_features_are_those_recorded(network):
    features = np.asarray(network(jnp.asarray(FILE["image"]))[0])
    assert np.abs(features - FILE["features"]).max() < 1e-4 * FILE["features"].max()


def test_the_spatial_features_are_seven_channels_of_the_first_branch_of_mixed_6d(network):
    """ADM's `mixed_6/conv`: a 1 x 1 convolution, its norm and ReLU, of what Mixed_6c gives."""
    image = jnp.asarray(FILE["image"])[:1]
    x = network._apply(image, STEM)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):
        branches = [network._apply(x, branch, f"{block}/") for branch in BLOCKS[block]]
        x = jnp.concatenate(branches, axis=-1)
    layer = network.layers["Mixed_6d/branch1x1"]
    kernel, bias = np.asarray(layer.weight)[0, 0, :, :7], np.asarray(layer.bias)[:7]
    expected = np.maximum(np.einsum("bhwc,cd->bhwd", np.asarray(x, np.float64), kernel) + bias, 0)
    found = np.asarray(network(image)[1])
    assert (found > 0).any()
    np.testing.assert_allclose(found, expected.reshape(1, -1), atol=1e-5 * expected.max())
    full = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    assert eqx.filter_eval_shape(network, full)[1].shape == (2, 17 * 17 * 7)


@pytest.mark.thorough
def test_both_published_files_give_the_same_network(tmp_path, weights, network):
    as_pickle(weights, tmp_path / "inception_v3_weights_fid.pickle")
    as_torch(weights, tmp_path / "inception.safetensors")
    features = jax.random.uniform(jax.random.key(2), (3, 2048))
    for file in tmp_path.iterdir():
        loaded = load_inception(file)
        jax.tree.map(np.testing.assert_array_equal, loaded.layers, network.layers)
        np.testing.assert_allclose(loaded.logits(features), features @ CLASSIFIER, atol=1e-3)
    with pytest.raises(InputError, match="have no classifier"):
        network.logits(features)


def published() -> dict[str, tuple[int, ...]]:
    """The shapes of the published weights.

    The recording was made without them, by code that declares the last 7 x 7 layers of three
    blocks narrower than they are in the files.
    """
    shapes = {}
    for name, shape in SHAPES.items():
        layer, (kind, part) = name.rsplit("/", 2)[0], name.rsplit("/", 2)[1:]
        shape = list(shape)
        if layer.endswith("7x7dbl_5"):
            shape[-1] = 192
        if part == "kernel" and shape[2] in (704, 736):
            shape[2] = 768
        shapes[f"{layer}/{kind}/{part}"] = tuple(shape)
    return shapes


def test_the_published_widths_fit():
    network = inception_from_weights({n: np.ones(s, np.float32) for n, s in published().items()})
    kernel_and_bias = sum(leaf.size for leaf in jax.tree.leaves(network))
    scales = sum(layer.bias.size for layer in network.layers.values())
    assert kernel_and_bias + scales == 21_785_568  # torchvision's count without its classifiers


def test_there_are_94_layers():
    assert len(kernels()) == 94


def test_means_exclude_the_padding():
    constant = jnp.full((1, 4, 5, 2), 3.0)
    np.testing.assert_allclose(_mean(constant), constant, rtol=1e-6)
    np.testing.assert_allclose(_mean(constant[:, :1]), constant[:, :1], rtol=1e-6)


def test_each_error_is_one_line(tmp_path, weights, network):
    def refused(change, *words):
        with pytest.raises(InputError) as caught:
            inception_from_weights(weights | change)
        assert all(word in str(caught.value) for word in words), caught.value

    refused({"Mixed_8a/conv/kernel": np.zeros(3)}, "left over: Mixed_8a")
    refused({"Mixed_5b/branch1x1/bn/bias": np.zeros(3)}, "Mixed_5b/branch1x1")
    square = np.zeros((7, 7, 128, 128), np.float32)
    refused({"Mixed_6b/branch7x7_2/conv/kernel": square}, "Mixed_6b/branch7x7_2;")
    name = "Mixed_7c/branch1x1"
    wide = {f"{name}/{part}": np.ones(64) for part in ("bn/scale", "bn/bias", "bn/mean", "bn/var")}
    kernel = weights[f"{name}/conv/kernel"]
    refused(wide | {f"{name}/conv/kernel": kernel[..., :64]}, "2048 features", "1792")
    refused({f"{name}/conv/kernel": kernel[:, :, :5]}, name, "takes 5 channels", "2048")
    with pytest.raises(InputError, match="missing: Conv2d_1a_3x3/bn/bias"):
        inception_from_weights({})
    with pytest.raises(InputError, match="missing, left over"):
        InceptionV3({})
    with pytest.raises(InputError, match="at least 75 pixels"):
        network(jnp.zeros((1, 32, 32, 3)))
    as_torch(weights, tmp_path / "torchvision.safetensors", classes=1000)
    with pytest.raises(InputError, match="1000 classes"):
        load_inception(tmp_path / "torchvision.safetensors")
    (tmp_path / "list.pickle").write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="no layers by name"):
        load_inception(tmp_path / "list.pickle")
    with pytest.raises(InputError, match=r"save its tensors as \.safetensors"):
        load_inception(tmp_path / "inception.pth")
    with pytest.raises(InputError, match="there is no file"):
        load_inception(tmp_path / "nothing.pickle")
