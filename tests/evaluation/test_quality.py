"""The judge, and what it keeps of pictures that went by."""

import jax
import numpy as np
import pytest

from odelt_eqx.data import ArraySource, digits
from odelt_eqx.data.reading import in_batches
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.choice import Classifier, called
from odelt_eqx.evaluation.distances import frechet_distance, jackknifed_frechet_distance
from odelt_eqx.evaluation.features import PixelFeatures
from odelt_eqx.evaluation.moments import Moments, Statistics, load_statistics
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.evaluation.reference import ReferenceConfig, save_reference
from odelt_eqx.evaluation.tally import Tally
from odelt_eqx.training.classifier import ClassifierConfig, train_classifier

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def judge():
    return Judge(PixelFeatures(), digits("train"), digits("held-out"), num_classes=10)


def of(judge, images, labels, size=100):
    """The judge's opinion of pictures in memory."""
    source = ArraySource(np.asarray(images, np.float32), labels)
    return judge.of(in_batches(source, range(len(source)), size), len(source))


def test_the_judge_knows_real_digits_from_noise(judge):
    held_out = digits("held-out")
    real = of(judge, held_out.images, held_out.labels)
    assert real.accuracy > 0.97
    assert real.frechet == pytest.approx(0, abs=1e-6)
    assert (real.precision, real.recall) == (1, 1)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (360, 8, 8, 1)))
    worst, other = of(judge, noise, held_out.labels), judge.of_real(360)
    assert worst.accuracy < 0.2
    assert worst.frechet > 20 * other.frechet
    assert worst.kernel > 10 * worst.kernel_error > 0
    assert abs(other.kernel) < 4 * other.kernel_error
    assert worst.precision == 0 < 0.8 < other.precision
    assert other.accuracy == real.accuracy


def test_the_judge_counts_the_class_that_was_asked_for(judge):
    train = digits("train")
    assert of(judge, train.images, (train.labels + 1) % 10).accuracy < 0.02
    alone = Judge(PixelFeatures(), train, digits("held-out"), num_classes=1)
    assert of(alone, train.images, train.labels).accuracy is None


def test_the_size_of_a_batch_is_not_seen_in_the_figures(judge):
    train = digits("train")
    one, many = (of(judge, train.images[:500], train.labels[:500], size) for size in (70, 500))
    for name in ("frechet", "frechet_error", "kernel", "precision", "recall", "accuracy"):
        assert getattr(one, name) == pytest.approx(getattr(many, name), rel=1e-6, abs=1e-9)


def test_an_account_goes_on_from_its_arrays():
    rows = RNG.standard_normal((50, 3)).astype(np.float32)
    whole, first = Tally.empty(50), Tally.empty(50)
    whole.add(rows, 20)
    first.add(rows[:30], 15)
    rest = Tally.from_arrays(first.arrays())
    rest.add(rows[30:], 5)
    assert (rest.count, rest.hits) == (50, 20)
    np.testing.assert_array_equal(rest.rows, rows)
    for ours, theirs in zip(rest.groups, whole.groups, strict=True):
        assert ours.count == theirs.count == 5
        np.testing.assert_allclose(ours.scatter, theirs.scatter)


def test_the_jackknife_knows_how_far_the_distance_spreads():
    real = Statistics(np.zeros(2), np.eye(2))
    values, errors = [], []
    for seed in range(100):
        groups = np.random.default_rng(seed).standard_normal((10, 50, 2)) + 0.5
        found = jackknifed_frechet_distance([Moments.of(group) for group in groups], real)
        assert found.value == pytest.approx(frechet_distance(groups.reshape(-1, 2), real))
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)
    with pytest.raises(InputError, match="at least two groups; got 1"):
        jackknifed_frechet_distance([Moments.of(np.eye(2))], real)


def test_a_reference_file_takes_the_place_of_the_held_out_split(tmp_path, judge):
    found = save_reference(ReferenceConfig(split="held-out"), tmp_path / "held-out.npz")
    assert (found.count, found.features) == (360, "pixels")
    given = load_statistics(tmp_path / "held-out.npz")
    train = digits("train")
    by_file = Judge(PixelFeatures(), train, digits("held-out"), num_classes=10, reference=given)
    ours, theirs = (of(j, train.images, train.labels) for j in (by_file, judge))
    assert ours.frechet == pytest.approx(theirs.frechet)
    assert by_file.reference.startswith("given statistics (")
    assert by_file.of_real(1000).frechet == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return *train_classifier(ClassifierConfig(width=8, steps=300), folder), folder


def test_a_classifier_learns_digits_and_is_read_back(trained):
    accuracy, (weights, _), folder = trained
    assert accuracy > 0.9
    features = Classifier(folder).open()
    assert features.name == Classifier(weights).open().name
    assert features.name.startswith("classifier-")
    held_out, train = digits("held-out"), digits("train")
    deviations = np.asarray(features(train.images)).std(0)
    np.testing.assert_allclose(deviations[deviations > 0], 1, rtol=1e-3)
    judge = Judge(features, digits("train"), held_out, num_classes=10)
    found = of(judge, held_out.images, held_out.labels)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.frechet == pytest.approx(0, abs=1e-4)
    assert judge.accuracy_by == "by the classifier"
    with pytest.raises(InputError, match=r"images of shape \(8, 8, 1\); got \(4, 4, 1\)"):
        features(np.zeros((2, 4, 4, 1), np.float32))


def test_a_classifier_that_is_none_is_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        Classifier(tmp_path).open()
    (tmp_path / "weights.safetensors").write_text("nothing")
    with pytest.raises(InputError, match="is no network of this package"):
        Classifier(tmp_path / "weights.safetensors").open()


def test_only_inception_makes_a_fid():
    assert [called("Fréchet", name) for name in ("inception", "inception-clean", "pixels")] == [
        *("FID", "FID (clean)", "Fréchet distance (pixels)")
    ]
    assert called("Kernel", "inception") == "KID"
