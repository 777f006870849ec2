"""Encoded pictures as they are found in the world, to squares of 8-bit pixels."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".avif", ".jp2"),
    ]
)
"""Names that end so are pictures; other files are passed over."""
MAX_PIXELS = 2**26
"""A picture that claims more is taken for a decompression bomb."""


class BadPictureError(ValueError):
    """A picture that cannot be used; one line says why."""


def decode(data: bytes, size: int, channels: int = 3) -> UInt8[np.ndarray, "size size channels"]:
    """Return the central square of a picture at a chosen size.

    | a picture that | is |
    |---|---|
    | is empty, cut short or of no known kind | refused |
    | claims more than `MAX_PIXELS` pixels | refused before any is decoded |
    | has floats or 32-bit integers for pixels | refused, unless they are those of 16 bits |
    | has 16-bit grey levels | scaled to 8 bits; 16-bit colours keep their high byte |
    | is in CMYK, YCbCr, LAB or has a palette | converted to RGB; colour profiles are ignored |
    | has transparency of any kind | laid on white |
    | is animated or has pages | its first frame |
    | has an EXIF orientation | turned upright |
    | is smaller than asked for | enlarged |

    The square is resized by Pillow's antialiased triangle filter, as the reference's pictures were.

    Args:
        data: the file.
        size: height and width of the result.
        channels: 3, or 1 for grey levels.

    Raises:
        BadPictureError: it is refused.
    """
    if not data:
        raise BadPictureError("empty file")
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadPictureError(f"{image.width} x {image.height}, over {MAX_PIXELS:,} pixels")
            image.draft("RGB", (2 * size, 2 * size))  # a JPEG far too large is decoded at a half
            square = _central_square(ImageOps.exif_transpose(image))
            opaque = _opaque(square, "RGB" if channels == 3 else "L")
            return _resized(opaque, size, channels)
    except BadPictureError:
        raise
    except Image.DecompressionBombError as error:
        raise BadPictureError(str(error)) from None
    except Exception as error:  # what a damaged file raises is up to its decoder
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadPictureError(problem.replace(" <_io.BytesIO object", " <")) from None


def _central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Return 8-bit RGB or grey levels."""
    if image.mode == "F":
        raise BadPictureError("pixels are floats, whose range is not known")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise BadPictureError("pixels are integers of more than 16 bits")
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode == "P":
        image = image.convert("RGB")
    return image.convert(mode)


def _resized(image: Image.Image, size: int, channels: int) -> UInt8[np.ndarray, "size size c"]:
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(size, size, channels)
