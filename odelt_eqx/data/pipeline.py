"""From a source to an endless stream of batches that can stop and go on anywhere."""

import grain

from odelt_eqx.data.source import Source
from odelt_eqx.errors import InputError


def stream(source: Source, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Return batches without end: "image" (batch, h, w, c), "label" and "index" (batch,).

    An index is the example's place in `source`, by which a batch can be found again. Every example
    comes once per epoch, in an order that `seed` and the epoch decide. The iterator's `get_state`
    and `set_state` save and restore its place exactly.

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
    order = grain.MapDataset.range(len(source)).shuffle(seed).repeat()
    dataset = order.map(lambda index: {**source[index], "index": index}).batch(batch_size)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)))
