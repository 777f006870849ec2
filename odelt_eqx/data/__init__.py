"""Data sets, and the pipeline that feeds training from them."""

from odelt_eqx.data.arrays import (
    Adm as Adm,
    Digits as Digits,
    Idx as Idx,
    Npz as Npz,
    digits as digits,
)
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
    load_into_memory as load_into_memory,
    read as read,
    read_batches as read_batches,
    sample_indices as sample_indices,
)
from odelt_eqx.data.splits import HeldOut as HeldOut
from odelt_eqx.data.tfds import Tfds as Tfds
from odelt_eqx.data.toy import Toy as Toy

Data = Digits | Idx | Folder | Npz | Adm | Shards | Tfds | Toy
"""A data set: where it is and how to read it."""
