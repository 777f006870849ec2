"""Data sets, and the pipeline that feeds training from them."""

from odelt_eqx.data.arrays import Digits as Digits, Idx as Idx, Npz as Npz, digits as digits
from odelt_eqx.data.folder import Folder as Folder
from odelt_eqx.data.pipeline import (
    Batch as Batch,
    Batches as Batches,
    Loading as Loading,
    stream as stream,
)
from odelt_eqx.data.shards import Shards as Shards
from odelt_eqx.data.source import (
    ArraySource as ArraySource,
    Source as Source,
    Split as Split,
    in_memory as in_memory,
)
from odelt_eqx.data.splits import HeldOut as HeldOut
from odelt_eqx.data.tfds import Tfds as Tfds

Data = Digits | Idx | Folder | Npz | Shards | Tfds
"""A data set: where it is, and how it is to be read."""


def open_source(data: Data, split: Split) -> Source:
    """Return a split of a data set.

    Raises:
        InputError: it is not there, is damaged, or has no such split.
    """
    return data.open(split)
