"""From a source to an endless stream of batches that can begin anywhere."""

import dataclasses
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from odelt_eqx.data.source import Source
from odelt_eqx.data.workers import follow_parent
from odelt_eqx.errors import InputError

Batch = dict[str, Any]
"""`image` (rows, height, width, channels) and `label` (rows,) of this process's share of a batch;
`index` (batch,), the places in the source of all of it."""
Batches = grain.DatasetIterator[Batch]
"""Batches without end; `close` ends their threads and processes."""


@dataclasses.dataclass(frozen=True)
class Loading:
    """How data are read while a network trains; `flip` alone changes what it sees.

    Args:
        flip: show the mirror image, left for right, half of the times.
        threads: threads that read ahead, in this process or in each of the workers.
        workers: processes that read ahead; 0 reads in this one. Each holds what a source holds.
        buffer: batches that are kept ready, by this process or by each of the workers.
    """

    flip: bool = False
    threads: int = 4
    workers: int = 0
    buffer: int = 8

    def __post_init__(self) -> None:
        """Check the counts."""
        for name, least in (("threads", 1), ("workers", 0), ("buffer", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}; got {getattr(self, name)}")


def stream(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    start: int = 0,
    process: int = 0,
    count: int = 1,
    loading: Loading = Loading(),
) -> Batches:
    """Return batches without end, each example once an epoch, in an order by `seed` and epoch.

    Batch number `n` is the same whenever, however and on however many processes it is read, mirror
    images and draws included: so the place of a run in its data is one number.

    Args:
        source: where examples come from.
        batch_size: examples per batch, over all processes.
        seed: decides the order, and what is left to chance.
        start: batches that are passed over without being read.
        process: which of `count` processes reads; each has an equal share of every batch.
        count: how many processes share a batch.
        loading: how they are read.

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
    read = _Read(source, seed, batch_size, batch_size // count, process, loading.flip)
    order = grain.MapDataset.range(len(source)).shuffle(seed).repeat()
    order = order.batch(batch_size, drop_remainder=True)  # rounded up, its length would overflow
    batches = order.map_with_index(read)[start:]
    if not loading.workers:
        return iter(batches.to_iter_dataset(_ahead(loading)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags on to its workers
    options = grain.MultiprocessingOptions(loading.workers, loading.buffer)
    return iter(batches.to_iter_dataset(_ahead(loading)).mp_prefetch(options, follow_parent))


def _ahead(loading: Loading) -> grain.ReadOptions:
    return grain.ReadOptions(loading.threads, max(loading.buffer, loading.threads))


@dataclasses.dataclass(frozen=True)
class _Read:
    """Reads a process's share of a batch."""

    source: Source
    seed: int
    batch_size: int
    share: int
    process: int
    flip: bool

    def __call__(self, number: int, index: Int[np.ndarray, " batch"]) -> Batch:
        """Return the share of batch `number`, which has the examples `index`."""
        first = self.process * self.share
        rows = range(first, first + self.share)
        examples = [self._example(number * self.batch_size + row, index[row]) for row in rows]
        columns = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}
        return {**columns, "index": index}

    def _example(self, position: int, index: np.integer) -> Any:
        """Return the example at a position of the stream; only that decides its chances."""
        if not (self.flip or self.source.random):
            return self.source[index]
        return self.source.draw(index, np.random.default_rng((self.seed, position)), self.flip)
