"""A batch dealt over parts that all get the same mix of depths."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from odelt_eqx.parallel import constrain_state, deal, mesh_size, undeal


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("depths", [1, 2, 3, 5])
def test_every_part_has_the_same_depths_and_every_example_counts_once(parts, depths):
    depth = np.arange(16) % depths
    rows, counted = deal(depth, parts)
    assert sorted(rows[counted].tolist()) == list(range(16))
    assert (depth[rows] == depth[rows[0]]).all()
    assert (np.diff(depth[rows[0]]) <= 0).all()
    assert rows.shape[1] <= 16 // parts + depths
    values = np.arange(16.0)
    assert (values[rows].ravel()[undeal(rows, counted)] == values).all()


@pytest.mark.parametrize(
    ("names", "kind", "size"),
    [
        (("data", "fsdp"), AxisType.Auto, 6),
        (("data", "fsdp"), AxisType.Explicit, 1),
        (("data", "model"), AxisType.Auto, 1),
    ],
)
def test_a_mesh_of_another_program_is_let_be(names, kind, size):
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 3), names, axis_types=(kind, kind))):
        assert mesh_size() == size


def test_a_state_made_before_a_mesh_is_left_for_place_to_lay_out():
    state, automatic = [jax.numpy.zeros(3)], (AxisType.Auto, AxisType.Auto)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 2), ("data", "fsdp"), automatic)):
        assert constrain_state(state)[0] is state[0]
