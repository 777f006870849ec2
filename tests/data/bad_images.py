"""Unusual and damaged images of every kind, made by Pillow."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image


def encoded(image, kind="PNG", **options):
    """Return an image as a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_size(width, height):
    """Return a PNG that claims a size and has no pixels."""
    chunk = lambda name, data: (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _colours():
    """Left half red, right half blue, green at the top."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8, 0] = pixels[:, 8:, 2] = 255
    pixels[:4] = (0, 255, 0)
    return Image.fromarray(pixels)


def _rotated():
    """The image on its side, with the EXIF orientation that turns it upright."""
    image = _colours().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


def _animated():
    other = Image.new("RGB", (16, 16), "white")
    return encoded(_colours(), "WEBP", save_all=True, append_images=[other], lossless=True)


def _see_through(mode):
    image = _colours().convert(mode)
    image.putalpha(Image.fromarray(np.repeat([[255] * 8 + [0] * 8], 16, 0).astype(np.uint8)))
    return encoded(image)


def _palette(**options):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, **options)


LEVELS = (np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16)
USABLE = {
    "plain.png": encoded(_colours()),
    "rotated.png": _rotated(),
    "animated.webp": _animated(),
    "cmyk.jpg": encoded(_colours().convert("CMYK"), "JPEG", quality=95),
    "grey16.png": encoded(Image.fromarray(LEVELS)),
    "grey16.tif": encoded(Image.fromarray(LEVELS), "TIFF"),
    "palette.png": _palette(),
    "palette-transparent.png": _palette(transparency=1),
    "alpha.png": _see_through("RGBA"),
    "grey-alpha.png": _see_through("LA"),
    "bits.png": encoded(Image.new("1", (16, 16), 1)),
    "pages.tif": encoded(_colours(), "TIFF", save_all=True, append_images=[_colours()]),
}
UNUSABLE = {
    "empty.jpg": (b"", "empty file"),
    "text.png": (b"this is not an image", "cannot identify image file"),
    "cut.png": (encoded(Image.effect_noise((64, 64), 99))[:900], "truncated"),
    "cut.jpg": (encoded(Image.effect_noise((64, 64), 99), "JPEG")[:500], "truncated"),
    "bomb.png": (png_of_size(60_000, 60_000), "pixels"),
    "large.png": (png_of_size(8_192, 8_193), "over 67,108,864 pixels"),
    "float.tif": (encoded(Image.new("F", (16, 16), 0.5), "TIFF"), "floats, whose range"),
    "signed.tif": (encoded(Image.new("L", (16, 16)), "TIFF", tiffinfo={339: 2}), "signed bytes"),
    "integer.tif": (encoded(Image.new("I", (16, 16), 70_000), "TIFF"), "outside 0 to 65535"),
}


def write_all(folder):
    """Write all of them, in the folders usable and unusable."""
    for kind, files in (("usable", USABLE), ("unusable", UNUSABLE)):
        (folder / kind).mkdir(parents=True)
        for name, file in files.items():
            (folder / kind / name).write_bytes(file if isinstance(file, bytes) else file[0])
    return folder
