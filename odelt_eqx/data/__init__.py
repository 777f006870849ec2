"""Sources of images and the pipeline that feeds training."""

from odelt_eqx.data.pipeline import Batch as Batch, stream as stream
from odelt_eqx.data.source import (
    ArraySource as ArraySource,
    DataName as DataName,
    Source as Source,
    digits as digits,
    open_source as open_source,
)
