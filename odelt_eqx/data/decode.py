"""Encoded images of any kind to squares of 8-bit pixels."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from odelt_eqx.errors import InputError, reason

MAX_PIXELS = 2**26
"""An image that claims more is taken for a decompression bomb."""


class BadImageError(ValueError):
    """An image that cannot be used; one line says why."""


def check_shape(size: int, channels: int) -> None:
    """Raise an InputError unless images can be decoded to this shape."""
    if size < 1:
        raise InputError(f"size must be at least 1; got {size}")
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3; got {channels}")


def decode_image(
    data: bytes, size: int, channels: int = 3
) -> UInt8[np.ndarray, "size size channels"]:
    """Return the central square of an image, resized.

    | an image that | is |
    |---|---|
    | is empty, truncated or of an unknown format | refused |
    | claims more than `MAX_PIXELS` pixels | refused before any is decoded |
    | has floats or 32-bit integers for pixels | refused, unless the values fit 16 bits |
    | has 16-bit grey levels | scaled to 8 bits; 16-bit colours keep their high byte |
    | is in CMYK, YCbCr, LAB or has a palette | converted to RGB; colour profiles are ignored |
    | has transparency of any kind | composed on white |
    | is animated or has pages | its first frame |
    | has an EXIF orientation | turned upright |
    | is smaller than `size` | enlarged |

    The square is resized by Pillow's antialiased triangle filter, as the reference's images were.

    `size` is the height and width of the result, in pixels; `channels` is 3, or 1 for grey levels.

    Raises:
        BadImageError: the image is refused.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width} x {image.height}, over {MAX_PIXELS:,} pixels")
            image.draft("RGB", (2 * size, 2 * size))  # a JPEG far too large is decoded at a half
            square = _crop(ImageOps.exif_transpose(image))
            opaque = _convert(square, "RGB" if channels == 3 else "L")
            resized = opaque.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(resized).reshape(size, size, channels)
    except BadImageError:
        raise
    except Exception as error:  # decoders raise anything on a damaged file
        raise BadImageError(reason(error).split(" <_io.")[0]) from None


def _crop(image: Image.Image) -> Image.Image:
    """Return the central square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Return an opaque 8-bit image, "RGB" or "L"."""
    if image.mode == "F":
        raise BadImageError("pixels are floats, whose range is not known")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise BadImageError("pixels are integers of more than 16 bits")
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode == "P":
        image = image.convert("RGB")
    return image.convert(mode)
