"""Unusual images are decoded as documented, damaged ones are refused with the reason."""

import numpy as np
import pytest
from PIL import Image

from odelt_eqx.data.decode import BadImageError, decode_image
from tests.data.bad_images import LEVELS, UNUSABLE, USABLE, encoded

PLAIN = decode_image(USABLE["plain.png"], 16)


@pytest.mark.parametrize("name", USABLE)
def test_every_usable_image_becomes_a_square_of_bytes(name):
    for channels in (1, 3):
        pixels = decode_image(USABLE[name], 8, channels)
        assert (pixels.shape, pixels.dtype) == ((8, 8, channels), np.uint8)


def test_a_plain_image_is_unchanged():
    assert (PLAIN[8, 0] == (255, 0, 0)).all()
    assert (PLAIN[8, 15] == (0, 0, 255)).all()
    assert (PLAIN[0] == (0, 255, 0)).all()


@pytest.mark.parametrize("name", ["rotated.png", "animated.webp", "pages.tif"])
def test_orientation_is_applied_and_the_first_frame_is_taken(name):
    np.testing.assert_array_equal(decode_image(USABLE[name], 16), PLAIN)


def test_cmyk_is_converted():
    assert np.abs(decode_image(USABLE["cmyk.jpg"], 16).astype(int) - PLAIN)[8].max() < 60


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif"])
def test_sixteen_bits_are_scaled_to_eight(name):
    np.testing.assert_array_equal(decode_image(USABLE[name], 16, 1)[..., 0], LEVELS // 257)


def test_a_palette_gives_its_colours():
    assert (decode_image(USABLE["palette.png"], 16) == (0, 0, 255)).all()


def test_transparency_is_composed_on_white():
    assert (decode_image(USABLE["palette-transparent.png"], 16) == 255).all()
    for name in ("alpha.png", "grey-alpha.png"):
        pixels = decode_image(USABLE[name], 16)
        assert (pixels[:, 8:] == 255).all()
        assert (pixels[8, 0] != 255).any()


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_images_are_refused_with_the_reason(name):
    data, reason = UNUSABLE[name]
    with pytest.raises(BadImageError, match=reason) as error:
        decode_image(data, 8)
    assert "\n" not in str(error.value)
    assert "0x" not in str(error.value)  # no address: the reason is the same in every run


def test_the_central_square_is_resized_without_aliasing():
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 32:96:2] = 255  # the central square alone has them, one pixel wide
    pixels = decode_image(encoded(Image.fromarray(stripes)), 16, 1)
    assert pixels[:, 1:-1].min() > 100
    assert pixels[:, 1:-1].max() < 155
    wide = np.zeros((64, 128), np.uint8)
    wide[:, :32] = wide[:, 96:] = 255
    assert not decode_image(encoded(Image.fromarray(wide)), 16, 1)[:, 1:-1].any()


def test_a_large_jpeg_is_close_to_an_exact_resize():
    ramp = np.linspace(0, 255, 1024, dtype=np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (1024, 1))] * 3, -1))
    exact = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode_image(encoded(image, "JPEG", quality=95), 32) - exact).max() <= 3
