"""The judge, and what it stores of samples."""

import jax
import numpy as np
import pytest

from odelt_eqx.data import Toy, digits, open_source
from odelt_eqx.evaluation.features import Edges, Pixels
from odelt_eqx.evaluation.metrics import compute_statistics
from odelt_eqx.evaluation.quality import Accumulator, Judge, groups
from odelt_eqx.files import write_arrays

RNG = np.random.default_rng(0)


def quality(judge, samples, labels, size=100):
    """The quality of samples in memory, in batches."""
    state = judge.accumulator(len(samples))
    for start in range(0, len(samples), size):
        part = slice(start, start + size)
        judge.add(state, np.asarray(samples[part], np.float32), labels[part])
    return judge.quality(state)


def test_the_judge_tells_real_digits_from_noise(judge):
    held_out = digits("held-out")
    real = quality(judge, held_out.x, held_out.condition)
    assert real.accuracy > 0.97
    assert real.frechet == pytest.approx(0, abs=1e-6)
    assert (real.precision, real.recall) == (1, 1)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (360, 8, 8, 1)))
    worst, other = quality(judge, noise, held_out.condition), judge.real_quality(360)
    assert worst.accuracy < 0.2
    assert worst.frechet > 20 * other.frechet
    assert worst.kernel > 10 * worst.kernel_error > 0
    assert abs(other.kernel) < 4 * other.kernel_error
    assert worst.precision == 0 < 0.8 < other.precision
    assert other.accuracy == real.accuracy


def test_the_judge_counts_the_class_that_was_asked_for(judge):
    train = digits("train")
    assert quality(judge, train.x, (train.condition + 1) % 10).accuracy < 0.02
    for classes in (1, None):
        alone = Judge(Pixels().open((8, 8, 1)), train, digits("held-out"), classes=classes)
        assert quality(alone, train.x, train.condition).accuracy is None


def test_the_quality_does_not_depend_on_the_batches(judge):
    train = digits("train")
    one, many = (quality(judge, train.x[:500], train.condition[:500], n) for n in (70, 500))
    for name in ("frechet", "frechet_error", "kernel", "precision", "recall", "accuracy"):
        assert getattr(one, name) == pytest.approx(getattr(many, name), rel=1e-6, abs=1e-9)


def test_few_samples_have_no_kernel_distance(judge):
    train = digits("train")
    with pytest.warns(UserWarning, match="do not determine the covariance"):
        few = quality(judge, train.x[:10], train.condition[:10])
    assert (few.kernel, few.precision) == (None, None)
    assert few.accuracy > 0.9


def test_the_judge_compares_vectors():
    train, held_out = (
        open_source(Toy("moons", count=600), split) for split in ("train", "held-out")
    )
    judge = Judge(Pixels().open((2,)), train, held_out, classes=2)
    real = judge.real_quality(300)
    assert real.accuracy == 1
    noise = quality(judge, RNG.standard_normal((300, 2)), np.arange(300) % 2)
    assert noise.kernel > 3 * real.kernel
    far = quality(judge, held_out.x + 10, held_out.condition)  # not clipped as pixels are
    assert far.frechet == pytest.approx(200, rel=1e-4)


def test_an_accumulator_continues_from_its_arrays(tmp_path):
    rows = RNG.standard_normal((50, 3)).astype(np.float32)
    kind, second = Pixels().open((8, 8, 1)), 2 * rows
    whole, first, rest = (Accumulator(50, kind, (3,), kind) for _ in range(3))
    whole.add(rows, second, 20)
    first.add(rows[:30], second[:30], 15)
    write_arrays(tmp_path / "first.npz", vars(first))
    rest.load(tmp_path / "nothing.npz")
    assert rest.count == 0
    rest.load(tmp_path / "first.npz")
    rest.add(rows[30:], second[30:], 5)
    assert (rest.count, rest.hits) == (50, 20)
    np.testing.assert_array_equal(rest.rows, rows)
    np.testing.assert_array_equal(rest.second, second)
    for ours, theirs in zip(groups(rest.rows), groups(whole.rows), strict=True):
        assert len(ours) == 5
        np.testing.assert_array_equal(ours, theirs)


def test_given_statistics_replace_those_of_the_held_out_split(judge):
    train, held_out = digits("train"), digits("held-out")
    given = compute_statistics(Pixels().open((8, 8, 1)), held_out)
    assert (given.count, given.features) == (360, "pixels")
    by_file = Judge(Pixels().open((8, 8, 1)), train, held_out, classes=10, reference=given)
    ours, theirs = (quality(j, train.x, train.condition) for j in (by_file, judge))
    assert ours.frechet == pytest.approx(theirs.frechet)
    assert by_file.reference.startswith("given statistics (")
    assert by_file.real_quality(1000).frechet == pytest.approx(0, abs=1e-6)


def test_images_have_a_second_judge_that_is_another(judge):
    train, held_out = digits("train"), digits("held-out")
    by_edges = Judge(Edges().open((8, 8, 1)), train, held_out, classes=10)
    assert (judge.second.name, by_edges.second.name) == ("edges", "pixels")
    ours, theirs = (quality(j, train.x, train.condition) for j in (judge, by_edges))
    assert ours.second == pytest.approx(theirs.frechet, rel=1e-6)
    assert ours.second_error == pytest.approx(theirs.frechet_error, rel=1e-6)
    assert theirs.second == pytest.approx(ours.frechet, rel=1e-6)
