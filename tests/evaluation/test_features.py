"""Inception's input against Pillow and closed forms; the classifier; pixels."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.data import Toy, digits
from odelt_eqx.evaluation import features as module
from odelt_eqx.evaluation.classifier import ClassifierConfig, train_classifier
from odelt_eqx.evaluation.features import (
    Classifier,
    Edges,
    Features,
    Inception,
    Pixels,
    inception_features,
    resize_as_adm,
    resize_as_clean_fid,
    resize_as_reference,
)
from odelt_eqx.evaluation.metrics import Statistics, compute_statistics
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.interop.inception import inception_from_weights
from tests.conftest import GOLDEN, golden_weight

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def network():
    shapes = json.loads(str(np.load(GOLDEN / "inception.npz")["names"]))
    return inception_from_weights({name: golden_weight(name, s) for name, s in shapes.items()})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return *train_classifier(ClassifierConfig(width=8, steps=200), folder), folder


def images(side: int, channels: int = 3) -> np.ndarray:
    return RNG.uniform(-1, 1, (2, side, side, channels)).astype(np.float32)


@pytest.mark.parametrize("side", [64, 299, 512])
def test_the_clean_resize_is_pillows(side):
    given = images(side)
    pixels = 127.5 * (given + 1)
    resized = np.stack(
        [
            [
                np.asarray(Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC))
                for channel in image.transpose(2, 0, 1)
            ]
            for image in pixels
        ]
    ).transpose(0, 2, 3, 1)
    expected = (np.clip(resized, 0, 255) - 128) / 128
    np.testing.assert_allclose(resize_as_clean_fid(jnp.asarray(given)), expected, atol=1e-4)


def test_the_resize_of_the_reference_reads_the_nearest_two_pixels():
    given = np.zeros((1, 598, 598, 3), np.float32)
    given[:, ::4] = 4.0  # half of the pairs of rows hold one bright row: a mean of 2, clipped to 1
    shown = np.asarray(resize_as_reference(jnp.asarray(given)))
    np.testing.assert_allclose(shown[0, :, 0, 0], (np.arange(299) % 2 == 0) * 1.0, atol=1e-5)
    thinned = np.zeros((1, 1196, 1196, 3), np.float32)
    thinned[:, ::4] = 1.0  # of four rows the middle two are read, without antialiasing
    assert np.abs(resize_as_reference(jnp.asarray(thinned))).max() == 0


@pytest.mark.parametrize("side", [32, 598])
def test_the_resize_of_adm_aligns_the_first_pixels(side):
    """Of a ramp of bytes, output pixel i is the value at i * side / 299, up to the last one."""
    values = np.round(np.linspace(0, 255, side))
    given = np.broadcast_to(values[:, None, None] / 127.5 - 1, (2, side, side, 3)).copy()
    given[1] = given[0].transpose(1, 0, 2) + 0.001  # rounded to the same bytes
    found = 128 * np.asarray(resize_as_adm(jnp.asarray(given, jnp.float32))) + 128
    expected = np.interp(np.arange(299) * side / 299, np.arange(side), values)
    np.testing.assert_allclose(found[0, :, 7, 1], expected, atol=1e-2)
    np.testing.assert_allclose(found[1, 7, :, 1], expected, atol=1e-2)


@pytest.mark.thorough
def test_inception_sees_grey_images_in_three_channels(network, monkeypatch):
    monkeypatch.setattr(module, "load_inception", lambda path: network)
    features, clean, adm = (
        Inception(Path("x"), how).open((32, 32, 1)) for how in ("reference", "clean", "adm")
    )
    names = ("inception", "inception-clean", "inception-adm")
    assert (features.name, clean.name, adm.name) == names
    assert adm.widths((32, 32, 1)) == [2048, 2023]
    assert adm.score_logits is None  # the weights have no classifier
    grey = images(32, channels=1)
    found = features(grey)
    assert found.shape == (2, 2048) == (2, features.widths((32, 32, 1))[0])
    np.testing.assert_allclose(found, features(np.repeat(grey, 3, -1)), rtol=1e-5)
    assert not np.allclose(found, clean(grey))
    for wrong in (images(32, channels=4), np.zeros((3, 2), np.float32)):
        with pytest.raises(odelt.InputError, match="images of 1 or 3 channels; got"):
            inception_features(network, resize_as_reference, jnp.asarray(wrong))


def test_pixels_of_images_are_clipped_and_values_of_vectors_are_not():
    features, given, vectors = (
        Pixels().open((8, 8, 1)),
        2 * images(4),
        5 * RNG.standard_normal((3, 2)),
    )
    np.testing.assert_array_equal(features(given), np.clip(given, -1, 1).reshape(2, -1))
    values = Pixels().open((2,))
    assert values.name == "values"
    np.testing.assert_array_equal(values(np.float32(vectors)), np.float32(vectors))
    assert (features.name, features.widths((4, 4, 3))) == ("pixels", [48])
    assert features.widths((2,)) == [2]


@pytest.mark.parametrize(
    ("shape", "name", "width"),
    [
        ((8, 8, 3), "pixels", 192),
        ((16, 16, 1), "pixels", 256),
        ((28, 28, 1), "pixels 16×16", 256),
        ((256, 256, 3), "pixels 8×8", 192),
        ((32, 32, 4), "pixels 8×8", 256),
    ],
)
def test_features_of_large_images_are_few(shape, name, width):
    features = Pixels().open(shape)
    assert (features.name, features.widths(shape)) == (name, [width])
    ramp = np.broadcast_to(np.linspace(-2, 2, shape[0], dtype=np.float32)[:, None, None], shape)
    (found,) = features(ramp[None])
    assert found.mean() == pytest.approx(0, abs=1e-4)
    rows = found.reshape(-1, int(np.sqrt(width / shape[2])), shape[2])
    assert (np.diff(rows[:, 0, 0]) > -1e-5).all()
    np.testing.assert_allclose(rows, rows[:, :1, :1] + np.zeros_like(rows), atol=1e-5)


def test_features_may_be_any_function():
    features = Features("means", lambda x: jnp.mean(x, axis=(1, 2)))
    assert features(images(4)).shape == (2, 3)


@pytest.mark.thorough
def test_a_classifier_learns_digits_and_is_read_back(classifier):
    accuracy, (weights, report), folder = classifier
    assert accuracy > 0.9
    assert json.loads(report.read_text())["accuracy"] == accuracy
    features = Classifier(folder).open((8, 8, 1))
    assert features.name == Classifier(weights).open((8, 8, 1)).name
    assert features.name.startswith("classifier-")
    held_out, train = digits("held-out"), digits("train")
    deviations = features(train.x).std(0)
    np.testing.assert_allclose(deviations[deviations > 0], 1, rtol=1e-3)
    judge = Judge(features, train, held_out, classes=10)
    state = judge.accumulator(len(held_out))
    judge.add(state, held_out.x, held_out.condition)
    found = judge.quality(state)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.frechet == pytest.approx(0, abs=1e-4)
    assert judge.accuracy_by == "by the classifier"
    with pytest.raises(odelt.InputError, match=r"images of shape \(8, 8, 1\); got \(4, 4, 1\)"):
        features(np.zeros((2, 4, 4, 1), np.float32))


def test_statistics_of_another_classifier_are_refused(classifier):
    features = Classifier(classifier[2]).open((8, 8, 1))
    other = Features("classifier-other", features.function)
    train, held_out = digits("train"), digits("held-out")
    reference = compute_statistics(other, held_out)
    judge = Judge(features, train, held_out, classes=10, reference=reference)
    with pytest.raises(odelt.InputError, match="feature mismatch: classifier-"):
        judge.real_quality(100)


def test_statistics_of_another_width_are_refused_before_anything_is_sampled():
    """Other people's files do not say whose features they are of."""
    held_out, reference = digits("held-out"), Statistics(np.zeros(3), np.eye(3))
    features = Pixels().open((8, 8, 1))
    judge = Judge(features, digits("train"), held_out, classes=10, reference=reference)
    with pytest.raises(odelt.InputError, match=r"pixels \(64\) and .* unnamed features \(3\)"):
        judge.prepare()


def test_a_file_that_is_no_classifier_is_one_line(tmp_path):
    with pytest.raises(odelt.InputError, match="there is no file"):
        Classifier(tmp_path).open((8, 8, 1))
    (tmp_path / "weights.safetensors").write_text("nothing")
    with pytest.raises(odelt.InputError, match="is no network of this package"):
        Classifier(tmp_path / "weights.safetensors").open((8, 8, 1))


def test_a_classifier_needs_images_of_several_classes(tmp_path):
    with pytest.raises(odelt.InputError, match=r"needs images of at least 2 classes; moons has"):
        train_classifier(ClassifierConfig(data=Toy("moons")), tmp_path)


def test_edges_are_the_norms_of_differences_to_neighbours():
    """Of a ramp that rises by 0.1 to the right and by 0.2 below, everywhere."""
    rows, columns = np.mgrid[:5, :6]
    ramp = (0.1 * columns + 0.2 * rows - 0.9)[None, ..., None].astype(np.float32)
    edges = Edges().open((5, 6, 1))
    np.testing.assert_allclose(edges(ramp), np.full((1, 4 * 5), np.hypot(0.1, 0.2)), rtol=1e-5)
    in_colour = np.concatenate([ramp, ramp, ramp], axis=-1)
    np.testing.assert_allclose(edges(in_colour), edges(ramp), rtol=1e-5)
    wide = Edges().open((64, 40, 3))
    assert wide.widths((64, 40, 3)) == [256]
    np.testing.assert_allclose(wide(np.ones((2, 64, 40, 3), np.float32)), 0)


@pytest.mark.parametrize("shape", [(3,), (1, 8, 1)])
def test_there_are_no_edges_without_neighbours(shape):
    with pytest.raises(odelt.InputError, match="edges are features of images of 2 x 2 pixels or"):
        Edges().open(shape)
