"""Points in the plane: closed forms of their distributions, and disjoint splits."""

import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.data import Toy
from odelt_eqx.data.toy import MOONS_MEAN, MOONS_VARIANCE, NOISE, SIDE


@pytest.mark.parametrize("name", ["moons", "checkerboard"])
def test_points_are_standardised_and_the_splits_are_disjoint(name):
    train, held_out = (Toy(name).open(split) for split in ("train", "held-out"))
    assert (len(train), len(held_out)) == (18_000, 2_000)
    assert (train.shape, train.levels, train.x.dtype) == ((2,), None, np.float32)
    for source in (train, held_out):
        np.testing.assert_allclose(source.x.mean(0), 0, atol=4 / np.sqrt(len(source)))
        np.testing.assert_allclose(source.x.var(0), 1, atol=4 / np.sqrt(len(source)))
    assert len(np.unique(np.concatenate([train.x, held_out.x]), axis=0)) == 20_000


@pytest.mark.parametrize("name", ["moons", "checkerboard"])
def test_points_depend_on_the_seed_alone(name):
    first, again, other = (Toy(name, 100, seed).open("train").x for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not (first == other).any()


def test_the_moons_are_half_circles_with_noise_of_equal_size():
    source = Toy("moons").open("train")
    assert source.class_names == ("upper", "lower")
    assert np.bincount(source.condition).tolist() == [9_000, 9_000]
    points = source.x * np.sqrt(MOONS_VARIANCE) + MOONS_MEAN
    centres = np.array([[0.0, 0.0], [1.0, 0.5]])[source.condition]
    radii = np.linalg.norm(points - centres, axis=1)
    assert abs(radii.mean() - 1) < 0.005
    assert abs(radii.std() - NOISE) < 0.002
    upper = points[:, 1] > centres[:, 1]
    assert (upper == (source.condition == 0)).mean() > 0.95  # the ends are noisy


def test_the_checkerboard_is_uniform_on_its_black_cells():
    source = Toy("checkerboard").open("train")
    assert (source.class_names, source.num_classes) == (("all",), 1)
    assert not source.condition.any()
    column, row = np.floor(source.x / SIDE + 2).astype(int).T
    assert ((column + row) % 2 == 0).all()
    counts = np.bincount(4 * column + row, minlength=16)
    assert (counts > 0).sum() == 8
    assert np.abs(counts[counts > 0] / len(source) - 1 / 8).max() < 0.01


def test_too_few_points_are_refused():
    with pytest.raises(odelt.InputError, match="count must be at least 20; got 5"):
        Toy(count=5)
