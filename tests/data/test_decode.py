"""Unusual images are decoded as documented, damaged ones are refused with the reason."""

import struct
import warnings

import numpy as np
import pytest
from PIL import Image, features

import odelt_eqx as odelt
from odelt_eqx.data import Folder, HeldOut, decode as decode_module
from odelt_eqx.data.decode import BadImageError, decode_image, find_shape
from tests.data.bad_images import LEVELS, UNUSABLE, USABLE, encoded, png_of_size

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


@pytest.mark.parametrize(("kind", "top"), [(np.uint16, 65535), (np.uint8, 255)])
def test_zero_may_be_white_in_a_tiff(kind, top):
    levels = np.linspace(0, top, 64).reshape(8, 8).astype(kind)
    data = encoded(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})
    if top == 255:  # of which Pillow inverts the pixels as it writes them
        levels = top - levels
    found = decode_image(data, 8, 1)[..., 0]
    np.testing.assert_allclose(found, 255 - levels / (top / 255), atol=0.5 + 1e-9)


def test_a_grey_level_of_sixteen_bits_may_be_transparent():
    levels = np.full((8, 8), 5000, np.uint16)
    levels[:, 4:] = 300
    data = encoded(Image.fromarray(levels), "PNG", transparency=300)
    assert (decode_image(data, 8, 1)[0, :, 0] == [19] * 4 + [255] * 4).all()


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


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"]
)
def test_every_format_that_is_listed_is_read(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    data = encoded(Image.new("RGB", (16, 16), "red"), kind)
    assert find_shape(data) == (16, 16, 3)
    assert (np.abs(decode_image(data, 16).astype(int) - (255, 0, 0)) < 8).all()


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA", "SGI"])
def test_a_file_of_another_format_is_not_opened_whatever_its_name(tmp_path, kind):
    data = encoded(Image.new("RGB", (16, 16), "red"), kind)
    assert find_shape(data) is None
    with pytest.raises(BadImageError, match="cannot identify image file"):
        decode_image(data, 16)
    with pytest.raises(odelt.InputError, match="cannot identify image file"):
        in_folder(tmp_path, {"0.png": data})


CORNERS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_an_image_is_turned_upright_once_and_its_shape_is_known(kind, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        **{1: CORNERS, 2: CORNERS[:, ::-1], 3: CORNERS[::-1, ::-1], 4: CORNERS[::-1]},
        **{5: CORNERS.swapaxes(0, 1), 6: np.rot90(CORNERS, -1), 8: np.rot90(CORNERS)},
        7: CORNERS[::-1, ::-1].swapaxes(0, 1),
    }[orientation]
    data = encoded(Image.fromarray(CORNERS), kind, exif=exif, **options)
    assert find_shape(data) == turned.shape
    np.testing.assert_array_equal(decode_image(data, turned.shape[:2]), turned)


def jpeg_with_exif(*entries):
    """Return a grey JPEG, 16 wide and 8 high, with EXIF tags: number, type, count, value."""
    tags = b"".join(struct.pack("<HHI", *head) + value for *head, value in entries)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + bytes(4)
    file = encoded(Image.new("L", (16, 8)), "JPEG")
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + file[2:]


@pytest.mark.parametrize(
    "odd",
    [(0x103, 2, 4, b"abc\0"), (0x100, 9, 1, b"\xff" * 4), (0x115, 8, 1, b"\xff" * 4)],
    ids=["text for a number", "negative long", "negative short"],
)
def test_other_tags_do_not_keep_an_image_from_being_turned(odd):
    data = jpeg_with_exif(odd, (0x112, 3, 1, b"\6\0\0\0"))
    assert find_shape(data) == (16, 8, 1)
    assert decode_image(data, (16, 8)).shape == (16, 8, 3)


@pytest.mark.parametrize(
    "orientation",
    [(0x112, 2, 2, b"6\0\0\0"), (0x112, 3, 1, b"\x09\0\0\0")],
    ids=["text", "nine"],
)
def test_what_is_no_orientation_turns_nothing(orientation):
    data = jpeg_with_exif(orientation)
    assert find_shape(data) == (8, 16, 1)
    assert decode_image(data, (8, 16)).shape == (8, 16, 3)


def test_the_central_square_is_resized_without_aliasing():
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 32:96:2] = 255  # the central square alone has them, one pixel wide
    pixels = decode_image(encoded(Image.fromarray(stripes)), 16, 1)
    assert pixels[:, 1:-1].min() > 100
    assert pixels[:, 1:-1].max() < 155
    wide = np.zeros((64, 128), np.uint8)
    wide[:, :32] = wide[:, 96:] = 255
    assert not decode_image(encoded(Image.fromarray(wide)), 16, 1)[:, 1:-1].any()


@pytest.mark.parametrize(("size", "kept"), [((8, 16), "all"), ((16, 8), "middle"), (8, "square")])
def test_the_central_part_of_a_shape_is_resized(size, kept):
    """Of a picture twice as wide as high whose columns count from 0 to 255."""
    columns = np.tile(np.linspace(0, 255, 128).astype(np.uint8), (64, 1))
    pixels = decode_image(encoded(Image.fromarray(columns)), size, 1)[..., 0]
    assert pixels.shape == ((size, size) if size == 8 else size)
    low, high = {"all": (0, 255), "middle": (95, 160), "square": (64, 191)}[kept]
    assert abs(int(pixels[0, 0]) - low) < 12
    assert abs(int(pixels[0, -1]) - high) < 12


def test_a_large_jpeg_is_close_to_an_exact_resize():
    ramp = np.linspace(0, 255, 1024, dtype=np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (1024, 1))] * 3, -1))
    exact = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode_image(encoded(image, "JPEG", quality=95), 32) - exact).max() <= 3


def in_folder(folder, files, **options):
    """Write files of images and return all pixels and notes of reading them as a data set."""
    for name, content in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        source = Folder(folder, size=8, channels=1, held_out=HeldOut(0.0), **options).open("train")
        values = np.stack([source[i]["x"] for i in range(len(source))])
    return np.round(127.5 * (values + 1)), [str(note.message) for note in notes]


@pytest.mark.parametrize(
    ("dtype", "top", "white", "suffix"),
    [
        (np.uint16, 4095, 4095, "png"),
        (np.uint16, 3900, 4095, "tif"),
        (np.uint16, 255, 255, "png"),
        (np.int32, 255, 255, "tif"),
        (np.int32, 60_000, 65535, "tif"),
    ],
)
def test_the_range_is_that_of_the_data_set(tmp_path, dtype, top, white, suffix):
    ramp = np.linspace(0, top, 64).reshape(8, 8)
    dark = encoded(Image.fromarray((ramp / 2).astype(dtype)), {"tif": "TIFF"}.get(suffix, "PNG"))
    light = encoded(Image.fromarray(ramp.astype(dtype)), {"tif": "TIFF"}.get(suffix, "PNG"))
    files = {f"0.{suffix}": dark, f"1.{suffix}": light}
    values, notes = in_folder(tmp_path / "a", files)
    assert values.min() == 0
    assert values[1].max() == round(255 * top / white)
    assert values[0].max() == pytest.approx(values[1].max() / 2, abs=1)
    assert [f"{white} is white" in note for note in notes] == [True] * (white > 255)
    skipped, notes = in_folder(tmp_path / "b", files, white=int(ramp.max() / 2))
    assert (skipped == skipped[0]).all()  # the brighter one is none of this range
    assert "1.png is skipped" in notes[0] or "1.tif is skipped" in notes[0]


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_without_its_end_is_used_and_a_cut_one_skipped(tmp_path, options):
    noise = Image.effect_noise((64, 64), 99)
    whole = encoded(noise, "JPEG", **options)
    files = {f"{i}.jpg": whole for i in range(6)} | {"short.jpg": whole[:-2]}
    values, notes = in_folder(tmp_path, files | {"cut.jpg": whole[: len(whole) // 2]})
    assert (values == values[0]).all()
    assert len(values) == 8
    assert ["cut.jpg is skipped: image file is truncated" in note for note in notes] == [True]
    for cut in (3, 4, 30, len(whole) // 3):
        with pytest.raises(BadImageError):
            decode_image(whole[:-cut], 64)
    with pytest.raises(odelt.InputError, match=r"2 of 9 images cannot be used, the last .*jpg: "):
        in_folder(tmp_path, {"also.jpg": whole[: len(whole) // 3]})


def test_a_large_jpeg_is_decoded_at_a_reduced_scale():
    image = Image.new("RGB", (12_000, 9_000), "red")
    assert (decode_image(encoded(image, "JPEG", quality=30), 16)[..., 0] > 250).all()
    with pytest.raises(BadImageError, match="12000 x 9000, over 67,108,864 pixels"):
        decode_image(encoded(image.convert("1"), "PNG"), 16)
    with pytest.raises(BadImageError, match="12000 x 9000, over 67,108,864 pixels"):
        decode_image(encoded(image, "JPEG", quality=30), 5000)  # only at its full scale


def test_a_folder_of_large_jpegs_alone_has_a_shape(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 2**16)
    image = Image.new("RGB", (640, 400), "red")
    (tmp_path / "0.jpg").write_bytes(encoded(image, "JPEG"))
    source = Folder(tmp_path).with_shape()
    assert (source.size, source.channels) == ((40, 64), 3)
    assert source.open("train")[0]["x"].shape == (40, 64, 3)
    for kind, options in (("PNG", {}), ("JPEG", {"progressive": True})):
        assert find_shape(encoded(image, kind, **options)) is None  # nor can these be decoded
    assert find_shape(png_of_size(60_000, 60_000)) is None
