"""The first pictures of a cell on a sheet, row by row; all sheets of a map are of one noise."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from odelt_eqx.images import rgb, save_png, tile

PIXELS = 2**19
"""Pixels of a sheet at most, so that a page of many sheets stays light."""

COLUMNS, ROWS = 10, 4


def columns(image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Return how many pictures stand in a row: one of each class if that is a fair number."""
    wanted = num_classes if 2 < num_classes <= COLUMNS else COLUMNS
    return max(1, min(wanted, PIXELS // (image_shape[0] * image_shape[1])))


def shown_count(image_shape: tuple[int, int, int], num_classes: int, count: int) -> int:
    """Return how many of `count` pictures a sheet shows: full rows, or the only one."""
    wide = columns(image_shape, num_classes)
    room = PIXELS // (image_shape[0] * image_shape[1] * wide)
    return min(count, wide * max(1, min(ROWS, room, count // wide)))


def save_sheet(
    images: Float[np.ndarray, "count height width channels"], num_classes: int, path: Path
) -> None:
    """Write pictures in [-1, 1] as a sheet in their own size."""
    height, width, channels = images.shape[1:]
    wide = min(len(images), columns((height, width, channels), num_classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(np.round(255 * rgb(tile(images, wide))).astype(np.uint8), path)


def first_row(path: Path, height: int) -> Float[np.ndarray, "tall wide 3"]:
    """Return the first row of a sheet, its frame included, with values in [0, 1].

    Args:
        path: the sheet.
        height: of one picture, in pixels.
    """
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("RGB"), np.float32)[: height + 2] / 255
