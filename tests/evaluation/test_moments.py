"""Moments gathered in parts are those of the whole, and files of them go both ways."""

import numpy as np
import pytest

from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.features import PixelFeatures
from odelt_eqx.evaluation.moments import (
    Moments,
    Statistics,
    load_statistics,
    save_statistics,
    statistics_of,
)

RNG = np.random.default_rng(0)


def test_batches_of_any_size_give_the_moments_of_the_whole():
    rows = 1e3 + RNG.standard_normal((100, 5)) * [1, 2, 3, 1e-3, 10]
    moments = Moments.of(rows[:1])
    for part in (rows[1:1], rows[1:8], rows[8:60]):
        moments = moments.add(part)
    moments = moments.merge(Moments.of(rows[60:]))
    found = moments.statistics("rows")
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-13)
    whole = np.cov(rows, rowvar=False)
    deviations = np.sqrt(np.diag(whole))
    bound = 1e-9 * np.outer(deviations, deviations)
    assert (np.abs(found.covariance - whole) < bound).all()
    assert (found.count, found.features) == (100, "rows")


def test_nothing_and_nothing_is_nothing():
    nothing = Moments.of(np.zeros((0, 3)))
    assert nothing.merge(nothing).count == 0
    with pytest.raises(InputError, match="at least 2 samples; got 0"):
        nothing.statistics()
    with pytest.raises(InputError, match="2 features cannot join those of 3"):
        nothing.add(np.zeros((1, 2)))
    with pytest.raises(InputError, match="got no images"):
        statistics_of(PixelFeatures(), [])
    with pytest.raises(InputError, match="not finite"):
        Moments.of(np.full((3, 2), np.nan)).statistics()


def test_images_are_seen_one_batch_at_a_time():
    images = RNG.uniform(-1, 1, (10, 2, 2, 1)).astype(np.float32)
    found = statistics_of(PixelFeatures(), (images[i : i + 4] for i in (0, 4, 8)))
    expected = np.cov(images.reshape(10, 4).astype(np.float64), rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-12)
    assert (found.count, found.features) == (10, "pixels")


def test_files_go_both_ways(tmp_path):
    ours = Moments.of(RNG.standard_normal((9, 3))).statistics("inception")
    save_statistics(ours, tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:  # as the reference reads it
        np.testing.assert_array_equal(file["mu"], ours.mean)
        np.testing.assert_array_equal(file["sigma"], ours.covariance)
    back = load_statistics(tmp_path / "ours.npz")
    assert (back.count, back.features) == (9, "inception")
    np.testing.assert_array_equal(back.covariance, ours.covariance)
    np.savez(tmp_path / "theirs.npz", mu=np.float32([1, 2]), sigma=np.eye(2))
    theirs = load_statistics(tmp_path / "theirs.npz")
    assert theirs.mean.dtype == np.float64
    assert (theirs.count, theirs.features) == (None, None)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(2)},
        {"mu": np.zeros((3, 1)), "sigma": np.eye(3)},
        {"mu": np.zeros(3), "sigma": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.full((3, 3), np.inf)},
        {"mu": np.array([{}]), "sigma": np.eye(1)},
        {"mu": np.array(["a"]), "sigma": np.eye(1)},
        {"mu": np.zeros(1), "sigma": np.eye(1), "count": np.zeros(2)},
    ],
)
def test_files_of_anything_else_are_refused_in_one_line(tmp_path, arrays):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(InputError, match="holds no statistics") as caught:
        load_statistics(tmp_path / "wrong.npz")
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("mu sigma")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy"):
        with pytest.raises(InputError, match="holds no statistics"):
            load_statistics(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        load_statistics(tmp_path / "nothing.npz")
    with pytest.raises(InputError, match="as wide as its mean"):
        Statistics(np.zeros(3), np.eye(2))
