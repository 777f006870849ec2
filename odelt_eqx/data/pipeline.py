"""From a source to an endless stream of batches that can begin anywhere."""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from odelt_eqx.data.source import Source
from odelt_eqx.errors import InputError

Batch = dict[str, Any]
"""`image` (rows, height, width, channels) and `label` (rows,) of this process's share of a batch;
`index` (batch,), the places in the source of all of it."""


def stream(
    source: Source, batch_size: int, seed: int, *, start: int = 0, process: int = 0, count: int = 1
) -> Iterator[Batch]:
    """Return batches without end, each example once an epoch, in an order by `seed` and epoch.

    Batch number `n` is the same whenever, however and on however many processes it is read: so the
    place of a run in its data is one number.

    Args:
        source: where examples come from.
        batch_size: examples per batch, over all processes.
        seed: decides the order.
        start: batches that are passed over without being read.
        process: which of `count` processes reads; each has an equal share of every batch.
        count: how many processes share a batch.

    Raises:
        InputError: the source has fewer examples than a batch, or the processes cannot share it.
    """
    if not 1 <= batch_size <= len(source):
        raise InputError(
            f"batch_size must lie between 1 and the {len(source)} examples of the data; "
            f"got {batch_size}"
        )
    if batch_size % count:
        raise InputError(
            f"batch_size must be a multiple of the {count} processes; got {batch_size}"
        )
    share = batch_size // count
    own = slice(process * share, (process + 1) * share)

    def read(index: Int[np.ndarray, " batch"]) -> Batch:
        examples = [source[place] for place in index[own]]
        columns = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}
        return {**columns, "index": index}

    order = grain.MapDataset.range(len(source)).shuffle(seed).repeat().batch(batch_size)
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    return iter(order[start:].map(read).to_iter_dataset(options))
