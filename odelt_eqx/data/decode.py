"""Encoded images of any kind to 8-bit pixels of one size."""

import math
from fractions import Fraction
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from odelt_eqx.errors import InputError, reason
from odelt_eqx.images import ImageSize, height_width

MAX_PIXELS = 2**26
"""An image of more pixels is not decoded."""
MAX_JPEG_PIXELS = 2**29
"""A JPEG may have more, as phones make them: it is decoded at a reduced scale."""
WHITES = (255, 1023, 4095, 16383, 65535)
"""The brightest values of images of 8, 10, 12, 14 and 16 bits."""
FORMATS = ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the formats that are read beside JPEG; for some others it runs programs."""
END_OF_JPEG = b"\xff\xd9"
ORIENTATION = ExifTags.Base.Orientation
PHOTOMETRIC = ExifTags.Base.PhotometricInterpretation
SAMPLE_FORMAT = ExifTags.Base.SampleFormat
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation; from 5 on, its sides change places."""


class BadImageError(ValueError):
    """An image that cannot be used; one line says why."""


def check_shape(size: ImageSize, channels: int) -> None:
    """Raise an InputError unless images can be decoded to this shape."""
    if min(height_width(size)) < 1:
        raise InputError(f"size must be at least 1; got {size}")
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3; got {channels}")


def decode_image(
    data: bytes, size: ImageSize, channels: int = 3, white: int = WHITES[-1]
) -> UInt8[np.ndarray, "height width channels"]:
    """Return the central part of an image that has the shape of `size`, resized to it.

    | an image that | is |
    |---|---|
    | is empty, truncated or neither a JPEG nor in one of the `FORMATS` | refused |
    | is a JPEG that lacks its end marker, but no pixel | used |
    | is a JPEG of up to `MAX_JPEG_PIXELS` pixels | decoded at 1/2, 1/4 or 1/8 if that is enough |
    | has more than `MAX_PIXELS` pixels all the same | refused before any is decoded |
    | has floats or signed bytes for pixels | refused |
    | has integers of more than 8 bits | scaled so that `white` is 255; above it, refused |
    | is a TIFF in which 0 is white | inverted |
    | has 16-bit colours | their high byte is used |
    | is in CMYK, YCbCr, LAB or has a palette | converted to RGB; colour profiles are ignored |
    | has transparency of any kind | composed on white |
    | is animated or has pages | its first frame |
    | has an EXIF orientation | turned upright |
    | is smaller than `size` | enlarged |

    It is resized by Pillow's antialiased triangle filter, as the reference's images were.

    `size` is (height, width) of the result, in pixels, or one number for both; `channels` is 3, or
    1 for grey levels; `white` is the brightest value of images of more than 8 bits, see
    `brightest`.

    Raises:
        BadImageError: the image is refused.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        return _decode(data, size, channels, white)
    except BadImageError:
        raise
    except Exception as error:  # decoders raise anything on a damaged file
        if (pixels := _decode_without_end(data, size, channels)) is not None:
            return pixels
        raise BadImageError(reason(error).split(" <_io.")[0]) from None


def find_shape(data: bytes) -> tuple[int, int, int] | None:
    """Return (height, width, channels) of an upright image, 1 channel for grey; None if refused."""
    try:
        with _identify(data) as image:
            # The size of a TIFF already is the one that its own tag asks for.
            turned = _orientation(image) >= 5 and ORIENTATION not in getattr(image, "tag_v2", ())
            width, height = image.size[::-1] if turned else image.size
            grey = image.mode[0] in "1LI" and image.mode != "LAB"
            return height, width, 1 if grey else 3
    except Exception:  # decoders raise anything; `decode_image` will say what is wrong
        return None


def brightest(data: bytes) -> int:
    """Return the largest value of an image of more than 8 bits; 255 for others, also damaged ones.

    A data set of 12-bit images comes in 16-bit files: its range is not that of the container.
    """
    try:
        with _open(data, 1) as image:
            return int(np.asarray(image).max()) if image.mode.startswith("I") else 255
    except Exception:  # decoders raise anything; `decode_image` will say what is wrong
        return 255


def _decode(data: bytes, size: ImageSize, channels: int, white: int) -> UInt8[np.ndarray, "h w c"]:
    height, width = height_width(size)
    with _open(data, size) as image:
        image.load()  # which turns a TIFF upright
        method = UPRIGHT.get(_orientation(image))
        upright = image if method is None else image.transpose(method)
        part = _crop(upright, height, width)
        tags = getattr(image, "tag_v2", {})
        if 2 in tags.get(SAMPLE_FORMAT, ()) and not image.mode.startswith("I"):
            raise BadImageError("pixels are signed bytes, whose range is not known")
        inverted = tags.get(PHOTOMETRIC) == 0
        opaque = _convert(part, "RGB" if channels == 3 else "L", white, inverted)
        resized = opaque.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized).reshape(height, width, channels)


def _open(data: bytes, size: ImageSize) -> Image.Image:
    """Open an image to be decoded at a size of at least twice `size`, if it is so large."""
    image = _identify(data)
    full = image.size
    least = 2 * max(height_width(size))  # it may yet be turned upright
    image.draft("RGB", (least, least))  # a JPEG far too large is decoded at a half
    if math.prod(image.size) > MAX_PIXELS:
        raise _too_large(full, MAX_PIXELS)
    return image


def _identify(data: bytes) -> Image.Image:
    """Open an image by its header, unless it has too many pixels whatever it is decoded for."""
    if data.startswith(b"\xff\xd8\xff"):
        # Pillow takes a large image for a bomb before it knows that it will be decoded at a half.
        image = JpegImageFile(BytesIO(data))
        progressive = image.info.get("progressive")  # of which all coefficients are kept
        limit = MAX_PIXELS if progressive else MAX_JPEG_PIXELS
    else:
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]  # AVIF since Pillow 11.3
        image, limit = Image.open(BytesIO(data), formats=known), MAX_PIXELS
    if math.prod(image.size) > limit:
        raise _too_large(image.size, limit)
    return image


def _too_large(size: tuple[int, int], limit: int) -> BadImageError:
    return BadImageError(f"{size[0]} x {size[1]}, over {limit:,} pixels")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, from 1, which is upright, to 8."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # damaged metadata raise anything, and say nothing
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def _decode_without_end(
    data: bytes, size: ImageSize, channels: int
) -> UInt8[np.ndarray, "height width channels"] | None:
    """Return the pixels of a JPEG that lacks nothing but its end marker; otherwise None.

    Where pixels are missing, what follows the data decides what is decoded in their place.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        one, other = (
            _decode(data + filling + END_OF_JPEG, size, channels, WHITES[-1])
            for filling in (b"", b"\x55" * 4096)
        )
    except Exception:  # decoders raise anything on a damaged file
        return None
    return one if np.array_equal(one, other) else None


def _crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the largest central part whose sides are as `height` to `width`."""
    scale = min(Fraction(image.height, height), Fraction(image.width, width))
    rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
    left, top = (image.width - columns) // 2, (image.height - rows) // 2
    return image.crop((left, top, left + columns, top + rows))


def _convert(image: Image.Image, mode: str, white: int, inverted: bool) -> Image.Image:
    """Return an opaque 8-bit image, "RGB" or "L".

    `inverted`: 0 is white, which Pillow has seen to in images of 8 bits.
    """
    if image.mode == "F":
        raise BadImageError("pixels are floats, whose range is not known")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > white:
            raise BadImageError(
                f"pixels are integers from {levels.min()} to {levels.max()}, outside 0 to {white}"
            )
        scaled = np.round(levels * (255 / white)).astype(np.uint8)
        opaque = levels != image.info.get("transparency")
        image = Image.fromarray(np.where(opaque, 255 - scaled if inverted else scaled, 255))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode == "P":
        image = image.convert("RGB")
    return image.convert(mode)
