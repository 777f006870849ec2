"""Examples at depths of their own, dealt out over parts that are all alike."""

import numpy as np
import pytest

from odelt_eqx.ode.dealing import deal, places, take


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("depths", [1, 2, 3, 5])
def test_every_part_has_the_same_depths_and_every_example_counts_once(parts, depths):
    depth = np.arange(16) % depths
    dealt, counts = deal(depth, parts)
    assert sorted(dealt[counts].tolist()) == list(range(16))
    assert (depth[dealt] == depth[dealt[0]]).all()
    assert (np.diff(depth[dealt[0]]) <= 0).all()
    assert dealt.shape[1] <= 16 // parts + depths
    rows = np.arange(16.0)
    assert (take(take(rows, dealt), places(dealt, counts)) == rows).all()
    again, counts = deal(depth[dealt.ravel()], parts)
    assert counts.all()
    assert again.ravel().tolist() == list(range(dealt.size))
