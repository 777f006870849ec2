"""From a source to an endless stream of batches that can stop and go on anywhere."""

import grain

from odelt_eqx.data.source import Source
from odelt_eqx.errors import InputError


def stream(source: Source, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Return batches `{"image": (batch, h, w, c), "label": (batch,)}` without end.

    Every example comes once per epoch, in an order that `seed` and the epoch decide. The
    iterator's `get_state` and `set_state` save and restore its place exactly.

    Args:
        source: where examples come from.
        batch_size: examples per batch.
        seed: decides the order.

    Raises:
        InputError: the source has fewer examples than a batch.
    """
    if not 1 <= batch_size <= len(source):
        raise InputError(
            f"batch_size must lie between 1 and the {len(source)} examples of the data; "
            f"got {batch_size}"
        )
    dataset = grain.MapDataset.source(source).shuffle(seed).repeat().batch(batch_size)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)))
