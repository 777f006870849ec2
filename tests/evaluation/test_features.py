"""What Inception is shown, against Pillow and against closed forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.features import (
    InceptionFeatures,
    PixelFeatures,
    as_clean_fid,
    as_the_reference,
)
from odelt_eqx.interop.inception import inception_from_weights
from tests.conftest import GOLDEN, golden_weight

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def network():
    shapes = json.loads(str(np.load(GOLDEN / "inception.npz")["names"]))
    return inception_from_weights({name: golden_weight(name, s) for name, s in shapes.items()})


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
    np.testing.assert_allclose(as_clean_fid(jnp.asarray(given)), expected, atol=1e-4)


def test_the_references_resize_takes_the_nearest_two_pixels():
    given = np.zeros((1, 598, 598, 3), np.float32)
    given[:, ::4] = 4.0  # half of the pairs of rows hold one bright row: a mean of 2, clipped to 1
    shown = np.asarray(as_the_reference(jnp.asarray(given)))
    np.testing.assert_allclose(shown[0, :, 0, 0], (np.arange(299) % 2 == 0) * 1.0, atol=1e-5)
    thinned = np.zeros((1, 1196, 1196, 3), np.float32)
    thinned[:, ::4] = 1.0  # of four rows the middle two are read, without antialiasing
    assert np.abs(as_the_reference(jnp.asarray(thinned))).max() == 0


def test_grey_images_are_shown_in_three_colours(network):
    features = InceptionFeatures(network)
    grey = images(32, channels=1)
    np.testing.assert_allclose(features(grey), features(np.repeat(grey, 3, -1)), rtol=1e-5)
    assert features(grey).shape == (2, 2048)
    with pytest.raises(InputError, match="1 or 3 channels; got 4"):
        features(images(32, channels=4))


def test_names_tell_the_features_apart(network):
    assert PixelFeatures().name == "pixels"
    assert InceptionFeatures(network).name == "inception"
    clean = InceptionFeatures(network, "clean")
    assert clean.name == "inception-clean"
    given = images(40)
    assert not np.allclose(clean(given), InceptionFeatures(network)(given))
    with pytest.raises(InputError, match="one of reference, clean; got 'dirty'"):
        InceptionFeatures(network, "dirty")


def test_pixels_are_clipped_rows():
    given = 2 * images(4)
    np.testing.assert_array_equal(PixelFeatures()(given), np.clip(given, -1, 1).reshape(2, -1))
    assert isinstance(PixelFeatures()(given), jax.Array)
