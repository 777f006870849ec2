"""From a source to an endless stream of batches that can start anywhere.

grain is imported when a stream is opened: it takes half a second.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import flags

from odelt_eqx.data.source import Source
from odelt_eqx.errors import InputError, check_range
from odelt_eqx.serialize import set_declared

Batch = dict[str, Any]
"""`x` (rows, *shape) and `condition` (rows,): this process's share of a batch; `index` (batch,):
the indices of the whole batch in the source."""


@runtime_checkable
class Batches(Protocol):
    """Endless batches, an iterator of grain's."""

    def __next__(self) -> Batch:
        """Return the next batch."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        ...

    def close(self) -> None:
        """End threads and processes that read ahead."""
        ...


@dataclasses.dataclass(frozen=True)
class Loading:
    """How training reads its data; only `flip` changes what it reads.

    Args:
        flip: mirror each image, left for right, with probability 1/2. Latents are taken for mirror
            images that were encoded, and left alone where they were not.
        threads: threads that read ahead, in this process or in each worker.
        workers: processes that read ahead; 0 reads in this one. Each has a copy of the source.
        buffer: batches to read ahead, in this process or in each worker.
    """

    flip: bool = False
    threads: int = 4
    workers: int = 0
    buffer: int = 8

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "threads", "buffer", least=1)
        check_range(self, "workers", least=0)


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
    """Return endless batches; each example comes once an epoch, in an order by seed and epoch.

    Batch number `n` depends on the source, the batch size, the seed, `flip` and `n` alone, not on
    when, how or by how many processes it is read. So one number resumes a run.

    Args:
        batch_size: examples per batch, over all processes.
        seed: decides the order, mirror images and draws.
        start: number of the first batch; those before it are not read.
        process: index of the process that reads; each has an equal share of every batch.
        count: number of processes that share a batch.

    Raises:
        InputError: the source has fewer examples than a batch, the processes cannot share it
            evenly, or the examples to mirror are not images.
    """
    import grain

    if not 1 <= batch_size <= len(source):
        raise InputError(
            f"batch_size must lie between 1 and the {len(source)} examples of the data; "
            f"got {batch_size}"
        )
    if batch_size % count:
        raise InputError(
            f"batch_size must be a multiple of the {count} processes; got {batch_size}"
        )
    if loading.flip and len(source.shape) != 3:
        raise InputError(f"flip mirrors images, but the examples have shape {source.shape}")
    share = batch_size // count
    rows = range(process * share, (process + 1) * share)
    read = partial(_read_batch, source, seed, loading.flip, rows)
    order = grain.MapDataset.range(len(source)).shuffle(seed).repeat()
    order = order.batch(batch_size, drop_remainder=True)  # rounded up, its length would overflow
    batches = order.map_with_index(read)[start:]
    options = grain.ReadOptions(loading.threads, max(loading.buffer, loading.threads))
    ahead = batches.to_iter_dataset(options)
    if loading.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain passes absl's flags on to its workers
        workers = grain.MultiprocessingOptions(loading.workers, loading.buffer)
        ahead = ahead.mp_prefetch(workers, follow_parent)
    return iter(ahead)


def _read_batch(
    source: Source, seed: int, flip: bool, rows: range, number: int, index: np.ndarray
) -> Batch:
    """Return `rows` of batch `number`, which has the examples `index`."""
    examples = []
    for row in rows:
        if flip or source.random:
            rng = np.random.default_rng((seed, number * len(index) + row))  # place in the stream
            examples.append(source.draw(index[row], rng, flip))
        else:
            examples.append(source[index[row]])
    columns = {name: np.stack([e[name] for e in examples]) for name in ("x", "condition")}
    return {**columns, "index": index}


def follow_parent(*_: int) -> None:
    """In a worker process: leave interrupts to the parent, and exit when it exits or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        os.setsid()  # signals to the parent's process group do not reach the worker
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
