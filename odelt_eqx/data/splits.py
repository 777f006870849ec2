"""Which items are held out, where the data do not say so themselves."""

import dataclasses
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool

from odelt_eqx.data.source import Split
from odelt_eqx.errors import InputError


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A share of the items, each chosen by a hash of its name and nothing else.

    So an item stays on its side when others are added or removed.

    Args:
        share: expected share of the items that are held out.
        seed: another seed holds out others.
    """

    share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.share < 1:
            raise InputError(f"held_out.share must lie in [0, 1); got {self.share}")

    def holds(self, name: str) -> bool:
        """Whether the item called `name` is held out."""
        digest = blake2b(f"{self.seed}/{name}".encode(errors="surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest(), "big") < self.share * 2**64

    def of(self, names: Iterable[str], split: Split) -> Bool[np.ndarray, " count"]:
        """Return which of the items are in a split."""
        held = np.fromiter(map(self.holds, names), bool)
        return held if split == "held-out" else ~held


def check_not_empty(count: int, split: Split, where: object) -> None:
    """Raise an InputError if a split has no examples."""
    if not count:
        advice = "raise data.held-out.share" if split == "held-out" else "give it some"
        raise InputError(f"{where} has no example in the {split} split; {advice}")
