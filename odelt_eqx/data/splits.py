"""The held-out split of data that do not define one."""

import dataclasses
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool

from odelt_eqx.data.source import Split
from odelt_eqx.errors import check_range
from odelt_eqx.serialize import set_declared


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Holds out a share of the items, each by a hash of its name alone.

    So an item stays in its split when others are added or removed.

    Args:
        share: expected share of the items that are held out.
        seed: another seed holds out other items.
    """

    share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "share", least=0, below=1)

    def select(self, names: Iterable[str], split: Split) -> Bool[np.ndarray, " count"]:
        """Return which of the items called `names` are in a split."""
        held_out = np.fromiter(map(self._holds, names), bool)
        return held_out if split == "held-out" else ~held_out

    def _holds(self, name: str) -> bool:
        digest = blake2b(f"{self.seed}/{name}".encode(errors="surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest(), "big") < self.share * 2**64
