"""How images are shown."""

import numpy as np
import pytest

from odelt_eqx.images import rgb, sheet


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])]
)
def test_images_of_any_number_of_channels_are_shown(channels, shown):
    image = np.random.default_rng(0).normal(size=(5, 4, 4, channels)).astype(np.float32)
    np.testing.assert_array_equal(rgb(image), image[..., shown])
    assert sheet(image, 5).shape[-1] == 3
