"""Parts of a source read once, in order, without holding the rest."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from odelt_eqx.data.source import Source

Places = Sequence[int] | Int[np.ndarray, " places"]


def read(
    source: Source, places: Places
) -> tuple[Float[np.ndarray, "count height width channels"], Int[np.ndarray, " count"]]:
    """Return the images in [-1, 1] and the classes at some places of a source."""
    examples = [source[int(place)] for place in places]
    images = np.stack([example["image"] for example in examples])
    return images, np.asarray([example["label"] for example in examples], np.int32)


def in_batches(
    source: Source, places: Places, size: int
) -> Iterator[tuple[Float[np.ndarray, "batch height width channels"], Int[np.ndarray, " batch"]]]:
    """Yield what `read` returns of so many places at a time; the last batch may be smaller."""
    for start in range(0, len(places), size):
        yield read(source, places[start : start + size])


def some(source: Source, count: int, seed: int = 0) -> Int[np.ndarray, " count"]:
    """Return `count` places of a source drawn by `seed`, or all that there are."""
    return np.random.default_rng(seed).permutation(len(source))[:count]
