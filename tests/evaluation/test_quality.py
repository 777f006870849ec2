"""The judge, and what it stores of samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odelt_eqx.array_files import write_arrays
from odelt_eqx.data import Adm, Toy, digits
from odelt_eqx.data.source import ArraySource, read, sample_indices
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.features import Edges, Features, Pixels
from odelt_eqx.evaluation.metrics import (
    compute_statistics,
    frechet_distance,
    inception_score,
    load_reference,
    precision_recall,
)
from odelt_eqx.evaluation.quality import Accumulator, Judge, groups
from odelt_eqx.images import to_bytes

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
    train, held_out = (Toy("moons", count=600).open(split) for split in ("train", "held-out"))
    judge = Judge(Pixels().open((2,)), train, held_out, classes=2)
    real = judge.real_quality(300)
    assert real.accuracy == 1
    noise = quality(judge, RNG.standard_normal((300, 2)), np.arange(300) % 2)
    assert noise.kernel > 3 * real.kernel
    far = quality(judge, held_out.x + 10, held_out.condition)  # not clipped as pixels are
    assert far.frechet == pytest.approx(200, rel=1e-4)


def test_an_accumulator_continues_from_its_arrays(tmp_path):
    rows = RNG.standard_normal((50, 3)).astype(np.float32)
    whole, first, rest = (Accumulator(50, 3, (2,)) for _ in range(3))
    whole.add(rows, 20)
    first.add(rows[:30], 15)
    write_arrays(tmp_path / "first.npz", vars(first))
    rest.load(tmp_path / "nothing.npz")
    assert rest.count == 0
    rest.load(tmp_path / "first.npz")
    rest.add(rows[30:], 5)
    assert (rest.count, rest.hits) == (50, 20)
    np.testing.assert_array_equal(rest.rows, rows)
    other = Accumulator(50, 4, (2,))
    other.load(tmp_path / "first.npz")  # of other features
    assert other.count == 0
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
    real, without = by_file.real_quality(300), judge.real_quality(300)
    held_out = quality(by_file, *read(held_out, sample_indices(held_out, 300)))
    assert (real.frechet, real.frechet_error) == (held_out.frechet, held_out.frechet_error)
    assert real.frechet < without.frechet
    same = ("kernel", "kernel_error", "precision", "recall", "second", "second_error", "accuracy")
    for name in same:  # no sample is compared with itself
        assert getattr(real, name) == pytest.approx(getattr(without, name), rel=1e-6)


def test_the_same_data_have_one_fingerprint_and_other_values_another():
    x, labels = RNG.standard_normal((30, 2)).astype(np.float32), np.arange(30) % 2
    source, same, other = (ArraySource(values, labels) for values in (x, x.copy(), -x))
    named = ArraySource(x, labels, class_names=("a", "b"))
    fingerprint = lambda *splits: Judge(Pixels().open((2,)), *splits, classes=2).data
    assert fingerprint(source, source) == fingerprint(same, same)
    changed = [(other, source), (source, other), (named, source), (source, named)]
    assert len({fingerprint(*splits) for splits in [(source, source), *changed]}) == 5


def quadrants(x):
    """Pooled and spatial features: pixels of one quadrant, and of another."""
    return x[:, :4, :4].reshape(len(x), -1), x[:, 4:, :4].reshape(len(x), -1)


def test_spatial_features_classes_and_images_of_a_reference_are_measured_as_adm_does(tmp_path):
    """Each number is that of the metric alone, of all samples and all images of the reference."""
    train, held_out = digits("train"), digits("held-out")
    weights = jnp.asarray(RNG.standard_normal((16, 6)), jnp.float32)
    features = Features("parts", quadrants, score_logits=lambda rows: rows @ weights)
    images = train.x[:250].repeat(3, -1)
    labels = {"arr_1": np.full(250, 999)}  # of other classes
    np.savez(tmp_path / "reference.npz", arr_0=to_bytes(images), **labels)
    none, real = load_reference(tmp_path / "reference.npz", (8, 8, 1))
    judge = Judge(features, train, held_out, classes=10, images=real)
    found = quality(judge, train.x[250:750], train.condition[250:750])
    (rows, spatial), (real_rows, real_spatial) = (
        map(np.asarray, quadrants(x)) for x in (train.x[250:750], images[..., :1])
    )
    assert none is None
    assert judge.further == ("spatial", "inception_score")
    assert judge.reference.startswith("250 given images (")
    assert judge.reference_count == 250
    assert found.frechet == pytest.approx(frechet_distance(rows, real_rows), abs=0.05)  # 8 bits
    assert found.spatial == pytest.approx(frechet_distance(spatial, real_spatial), abs=0.05)
    both = precision_recall(rows, real_rows)
    assert (found.precision, found.recall) == pytest.approx(both, abs=0.02)
    probabilities = np.asarray(jax.nn.softmax(rows @ weights))
    assert found.inception_score == pytest.approx(inception_score(probabilities), rel=1e-5)
    assert 0 < found.inception_score_error < found.inception_score
    given = compute_statistics(features, held_out)
    by_both = Judge(features, train, held_out, classes=10, reference=given, images=real)
    again = quality(by_both, train.x[250:750], train.condition[250:750])
    assert again.spatial == pytest.approx(frechet_distance(spatial, given.spatial), rel=1e-5)
    assert (again.precision, again.second) == (found.precision, found.second)
    assert by_both.reference.startswith("given statistics and 250 given images (")
    assert len({judge.reference[-9:], by_both.reference[-9:]}) == 2
    pooled = dataclasses.replace(given, spatial=None)
    without = Judge(features, train, held_out, classes=10, reference=pooled)
    assert quality(without, train.x[:60], train.condition[:60]).spatial is None
    with pytest.raises(InputError, match=r"samples of shape \(8, 8, 1\) and a reference of images"):
        Judge(
            features,
            train,
            held_out,
            classes=10,
            images=Adm(tmp_path / "reference.npz").open("train"),
        )


def test_images_have_a_second_judge_that_is_another(judge):
    train, held_out = digits("train"), digits("held-out")
    by_edges = Judge(Edges().open((8, 8, 1)), train, held_out, classes=10)
    assert (judge.second.name, by_edges.second.name) == ("edges", "pixels")
    ours, theirs = (quality(j, train.x, train.condition) for j in (judge, by_edges))
    assert ours.second == pytest.approx(theirs.frechet, rel=1e-6)
    assert ours.second_error == pytest.approx(theirs.frechet_error, rel=1e-6)
    assert theirs.second == pytest.approx(ours.frechet, rel=1e-6)


def test_images_of_one_row_of_pixels_have_one_judge():
    thin = ArraySource(np.zeros((40, 1, 8, 1), np.float32), np.zeros(40, np.int32))
    assert Judge(Pixels().open((1, 8, 1)), thin, thin, classes=None).second is None
