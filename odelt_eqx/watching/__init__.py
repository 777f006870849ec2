"""Where a run is watched: its folder always, TensorBoard and Weights & Biases on request."""

from odelt_eqx.watching.config import WatchConfig as WatchConfig
from odelt_eqx.watching.watcher import (
    Watcher as Watcher,
    check_installed as check_installed,
    watching as watching,
)
