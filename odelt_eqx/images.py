"""Images: their size, and how they are tiled, enlarged and written as PNG."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from odelt_eqx.files import atomic_write

ImageSize = int | tuple[int, int]
"""(height, width) in pixels, or one number for both."""


def height_width(size: ImageSize) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def tile(
    images: Float[np.ndarray, "count height width channels"], columns: int
) -> Float[np.ndarray, "height_all width_all channels"]:
    """Tile images in [-1, 1] row by row, separated by white lines of one pixel, as [0, 1]."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), np.float32)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = np.clip(image, -1, 1) / 2 + 0.5
    return canvas


def to_bytes(images: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Return images in [-1, 1], which values outside are clipped to, as bytes."""
    return np.round(127.5 * (np.clip(images, -1, 1) + 1)).astype(np.uint8)


def rgb(image: Shaped[np.ndarray, "*axes channels"]) -> Shaped[np.ndarray, "*axes 3"]:
    """Return three channels: the first three, or of fewer the first one, repeated."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


def sheet(
    images: Float[np.ndarray, "count height width channels"], columns: int
) -> UInt8[np.ndarray, "height_all width_all 3"]:
    """Tile images in [-1, 1], small ones enlarged."""
    tiled = rgb(tile(images, columns))
    zoom = max(1, min(640 // tiled.shape[1], 1280 // tiled.shape[0]))
    return np.kron(np.round(255 * tiled).astype(np.uint8), np.ones((zoom, zoom, 1), np.uint8))


def save_png(image: UInt8[np.ndarray, "height width 3"], path: Path) -> None:
    """Write an image atomically."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary)
