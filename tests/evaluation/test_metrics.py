"""Statistics gathered in parts, their files, and distances against closed forms."""

import dataclasses
import itertools
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
from scipy.linalg import sqrtm

from odelt_eqx.data import ArraySource
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.features import Features, Pixels
from odelt_eqx.evaluation.metrics import (
    Statistics,
    compute_statistics,
    distance_name,
    frechet_distance,
    inception_score,
    jackknife_frechet_distance,
    jackknife_inception_score,
    kernel_distance,
    load_reference,
    load_statistics,
    precision_recall,
    save_statistics,
)

RNG = np.random.default_rng(0)


def whitened(n: int, d: int) -> np.ndarray:
    """Return points whose sample mean is 0 and whose sample covariance is exactly 1."""
    x = RNG.standard_normal((n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T


def test_batches_of_any_size_have_the_statistics_of_the_whole():
    rows = 1e3 + RNG.standard_normal((100, 5)) * [1, 2, 3, 1e-3, 10]
    found = Statistics.of(rows[:1], "rows")
    for part in (rows[1:1], rows[1:8], rows[8:60], rows[60:]):
        found = found.merge(Statistics.of(part))
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-13)
    whole = np.cov(rows, rowvar=False)
    deviations = np.sqrt(np.diag(whole))
    bound = 1e-9 * np.outer(deviations, deviations)
    assert (np.abs(found.covariance - whole) < bound).all()
    assert (found.count, found.features) == (100, "rows")


def test_statistics_of_nothing_are_zero():
    nothing = Statistics.of(np.zeros((0, 3)))
    assert nothing.merge(nothing).count == 0
    with pytest.raises(InputError, match="at least 2 samples; got 0"):
        frechet_distance(nothing, np.eye(3))
    with pytest.raises(InputError, match=r"feature mismatch: unnamed \(3\) and unnamed \(2\)"):
        nothing.merge(Statistics.of(np.zeros((1, 2))))
    with pytest.raises(InputError, match="not finite"):
        Statistics.of(np.full((3, 2), np.nan))
    with pytest.raises(InputError, match="as wide as its mean"):
        Statistics(np.zeros(3), np.eye(2))


def test_statistics_of_data_are_computed_batch_by_batch():
    images = RNG.uniform(-1, 1, (10, 2, 2, 1)).astype(np.float32)
    source = ArraySource(images, np.zeros(10, np.int32))
    found = compute_statistics(Pixels().open((8, 8, 1)), source, batch_size=4)
    expected = np.cov(images.reshape(10, 4).astype(np.float64), rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-12)
    assert (found.count, found.features, found.spatial) == (10, "pixels", None)
    both = Features("both", lambda x: (x[:, 0, 0], x[:, 1, 1]))
    spatial = compute_statistics(both, source, batch_size=3).spatial
    np.testing.assert_allclose(spatial.covariance[0, 0], images[:, 1, 1, 0].var(ddof=1), rtol=1e-6)
    assert (spatial.count, spatial.features) == (10, "both spatial")


def test_files_of_statistics_go_both_ways(tmp_path):
    ours = Statistics.of(RNG.standard_normal((9, 3)), "inception")
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
    save_statistics(theirs, tmp_path / "theirs.npz")
    assert load_statistics(tmp_path / "theirs.npz").count is None


def test_other_arrays_in_a_file_of_statistics_are_left_alone(tmp_path):
    """As in the reference batches of guided-diffusion, which hold images and spatial features."""
    path = tmp_path / "batch.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2), arr_0=np.array([{}]), mu_s=np.zeros(5))
    np.testing.assert_array_equal(load_statistics(path).covariance, np.eye(2))


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, mu=np.zeros(2), sigma=np.zeros(2**26, np.float64))
    with pytest.raises(InputError, match=r"it unpacks to 0\.5 GiB; save it uncompressed"):
        load_statistics(path)


def test_a_reference_batch_of_adm_holds_statistics_of_two_kinds_and_images(tmp_path):
    pooled, spatial = (Statistics.of(RNG.standard_normal((9, n))) for n in (3, 2))
    arrays = {"mu": pooled.mean, "sigma": pooled.covariance, "arr_0": np.zeros((4, 8, 8, 3), "u1")}
    arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(tmp_path / "adm.npz", **arrays)
    found, images = load_reference(tmp_path / "adm.npz", (8, 8, 1))
    assert (found.count, found.features, len(images), images.shape) == (None, None, 4, (8, 8, 1))
    np.testing.assert_array_equal(found.spatial.covariance, spatial.covariance)
    named = dataclasses.replace(found, count=9, features="inception")
    save_statistics(named, tmp_path / "ours.npz")
    back, nothing = load_reference(tmp_path / "ours.npz", (8, 8, 3))
    assert nothing is None
    assert (back.spatial.count, back.spatial.features) == (9, "inception spatial")
    np.testing.assert_array_equal(back.spatial.mean, spatial.mean)
    np.savez(tmp_path / "images.npz", arr_0=arrays["arr_0"])
    assert load_reference(tmp_path / "images.npz", (8, 8, 3))[0] is None
    np.savez(tmp_path / "wrong.npz", **arrays | {"sigma_s": np.array([[1.0, 0.5], [0.2, 1.0]])})
    with pytest.raises(InputError, match="sigma_s is not symmetric"):
        load_reference(tmp_path / "wrong.npz", (8, 8, 3))
    np.savez(tmp_path / "wrong.npz", mu_s=spatial.mean)
    with pytest.raises(InputError, match="it has no array 'mu'"):
        load_reference(tmp_path / "wrong.npz", (8, 8, 3))


def test_the_inception_score_of_certain_and_of_uniform_predictions():
    """As many as the classes in a split, and 1; of both in equal parts the mean of splits."""
    certain, uniform = np.eye(4)[np.arange(40) % 4], np.full((40, 4), 0.25)
    assert inception_score(certain) == pytest.approx(4)
    assert inception_score(uniform) == pytest.approx(1)
    both = np.concatenate([certain, uniform[:20]])
    assert inception_score(both, split=40) == pytest.approx((4 + 1) / 2)
    assert inception_score(both) == pytest.approx(4 ** (2 / 3))  # KL: log 4 for two thirds


def test_the_jackknife_error_of_the_inception_score_is_its_spread():
    values, errors, group = [], [], np.arange(200) % 10
    for seed in range(60):
        probabilities = np.random.default_rng(seed).dirichlet(np.full(5, 0.3), 200)
        value, error = jackknife_inception_score(probabilities, group)
        assert value == inception_score(probabilities)
        values.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(2)},
        {"mu": np.zeros((3, 1)), "sigma": np.eye(3)},
        {"mu": np.zeros(3), "sigma": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.full((3, 3), np.inf)},
        {"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.2, 1.0]])},
        {"mu": np.zeros(2), "sigma": np.diag([1.0, -1.0])},
        {"mu": np.array([{}]), "sigma": np.eye(1)},
        {"mu": np.array(["a"]), "sigma": np.eye(1)},
        {"mu": np.zeros(1), "sigma": np.eye(1), "count": np.zeros(2)},
    ],
)
def test_files_of_something_else_are_refused_in_one_line(tmp_path, arrays):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(InputError, match="is not a file of statistics") as caught:
        load_statistics(tmp_path / "wrong.npz")
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("mu sigma")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy", "nothing.npz"):
        with pytest.raises(InputError, match="is not a file of statistics"):
            load_statistics(tmp_path / name)


@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_gaussians_with_diagonal_covariances(dimension):
    x = whitened(200, dimension)
    scale, shift = RNG.uniform(0.5, 2, (2, dimension))
    expected = np.sum(shift**2) + np.sum((1 - scale) ** 2)
    assert frechet_distance(x, x * scale + shift) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_do_not_commute():
    x = whitened(300, 2)
    a, b = np.diag([3.0, 1.0]), np.array([[2.0, 1.0], [1.0, 2.0]])
    product = np.linalg.eigvals(a @ a @ b @ b)
    expected = np.trace(a @ a + b @ b) - 2 * np.sum(np.sqrt(product.real))
    assert frechet_distance(x @ a, x @ b) == pytest.approx(expected, rel=1e-9)


def test_covariances_may_be_singular():
    x = np.zeros((20, 5))
    x[:, 0] = RNG.standard_normal(20)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(5)


def test_random_covariances_agree_with_the_matrix_square_root():
    for _ in range(5):
        a, b = (RNG.standard_normal((40, 12)) @ RNG.standard_normal((12, 12)) for _ in "ab")
        cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = np.trace(sqrtm(cov_a @ cov_b).real)
        gap = np.square(a.mean(0) - b.mean(0)).sum()
        expected = gap + np.trace(cov_a) + np.trace(cov_b) - 2 * root
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.filterwarnings("ignore:.*samples do not determine")
def test_a_set_has_no_distance_to_itself_even_with_few_samples():
    x = 10 * RNG.standard_normal((30, 200))
    assert frechet_distance(x, x) < 1e-9


def test_low_ranks_have_a_closed_form():
    """One direction each: the cross term is the cosine between them times both deviations."""
    u, v = (w / np.linalg.norm(w) for w in RNG.standard_normal((2, 50)))
    a, b = (Statistics(np.zeros(50), s * np.outer(w, w)) for s, w in ((4.0, u), (9.0, v)))
    assert frechet_distance(a, b) == pytest.approx(4 + 9 - 2 * 2 * 3 * abs(u @ v), abs=1e-12)


def test_rows_and_their_statistics_have_the_same_distance():
    a, b = RNG.standard_normal((2, 50, 4))
    expected = frechet_distance(a, b)
    assert frechet_distance(Statistics.of(a), jnp.asarray(b)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, Statistics.of(b)) == pytest.approx(expected, rel=1e-12)


def test_too_few_samples_are_a_warning():
    few, many = RNG.standard_normal((8, 8)), RNG.standard_normal((9, 8))
    with pytest.warns(UserWarning, match="8 samples do not determine the covariance of 8 features"):
        frechet_distance(few, many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(many, many + 1)
        frechet_distance(many, Statistics(np.zeros(8), np.eye(8)))  # of an unknown number


def test_different_features_are_not_compared():
    a = Statistics(np.zeros(3), np.eye(3), features="inception")
    for other in (np.zeros((9, 2)), Statistics(np.zeros(3), np.eye(3), features="pixels")):
        with pytest.raises(InputError, match=r"inception \(3\) and (unnamed \(2\)|pixels \(3\))"):
            frechet_distance(a, other)
    frechet_distance(a, Statistics(np.zeros(3), np.eye(3)))


def test_the_jackknife_error_is_the_spread_of_the_distance():
    real = Statistics(np.zeros(2), np.eye(2))
    values, errors = [], []
    for seed in range(100):
        groups = np.random.default_rng(seed).standard_normal((10, 50, 2)) + 0.5
        value, error = jackknife_frechet_distance(list(groups), real)
        assert value == pytest.approx(frechet_distance(groups.reshape(-1, 2), real))
        values.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)
    with pytest.raises(InputError, match="at least two groups; got 1"):
        jackknife_frechet_distance([np.eye(2)], real)


@pytest.mark.filterwarnings("ignore:.*samples do not determine")
@pytest.mark.parametrize(("count", "real_count"), [(40, 30), (40, 300), (300, 30)])
def test_few_samples_cost_no_matrix_as_wide_as_the_features(count, real_count):
    """By the deviations of the samples the distance is that by covariances."""
    samples, real = RNG.standard_normal((count, 100)), RNG.standard_normal((real_count, 100)) + 1
    groups = np.split(samples, 10)
    value, error = jackknife_frechet_distance(groups, real)
    expected = frechet_distance(Statistics.of(samples), Statistics.of(real))
    left_out = [
        frechet_distance(
            Statistics.of(np.concatenate([*groups[:g], *groups[g + 1 :]])), Statistics.of(real)
        )
        for g in range(10)
    ]
    assert value == pytest.approx(expected, rel=1e-9)
    assert error == pytest.approx(np.std(left_out) * 3, rel=1e-6)
    if count < 100 and real_count < 100:  # a covariance would take 512 GiB
        wide = np.zeros((count, 2**18), np.float32)
        wide[:, :100] = samples
        wide_real = np.zeros((real_count, 2**18), np.float32)
        wide_real[:, :100] = real
        assert frechet_distance(wide, wide_real) == pytest.approx(expected, rel=1e-5)


def test_the_kernel_distance_is_that_of_brute_force():
    a, b = RNG.standard_normal((20, 3)), RNG.standard_normal((24, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    estimates = []
    orders = np.random.default_rng(7)
    i, j = orders.permutation(20), orders.permutation(24)
    for part in range(10):
        x, y = a[i[2 * part : 2 * part + 2]], b[j[2 * part : 2 * part + 2]]
        cross = np.mean([kernel(p, q) for p, q in itertools.product(x, y)])
        estimates.append(kernel(*x) + kernel(*y) - 2 * cross)
    value, error = kernel_distance(a, b, subset=2, seed=7)
    assert value == pytest.approx(np.mean(estimates))
    assert error == pytest.approx(np.std(estimates, ddof=1) / np.sqrt(10))


def test_the_kernel_distance_of_one_distribution_is_zero_within_its_error():
    scores = []
    for seed in range(200):
        a, b = np.random.default_rng(seed).standard_normal((2, 200, 4))
        value, error = kernel_distance(a, b, subset=10)
        scores.append(value / error)
    assert abs(np.mean(scores)) < 4 / np.sqrt(200)
    assert 0.8 < np.std(scores) < 1.3


def test_the_kernel_distance_of_point_masses_has_a_closed_form():
    value, error = kernel_distance(jnp.ones((30, 2)), np.zeros((40, 2)))
    assert value == pytest.approx((1 + 1) ** 3 + 1 - 2)
    assert error == 0


def test_precision_and_recall_of_sets_apart_equal_and_nested():
    line = np.arange(100.0)[:, None] * [1.0, 0.0]
    assert precision_recall(line, line) == (1, 1)
    assert precision_recall(jnp.asarray(line), jnp.asarray(line + 1e4)) == (0, 0)
    # A part is all real, but reaches only 3 past its ends.
    assert precision_recall(line[40:60], line) == (1, 0.26)
    assert precision_recall(line, line[40:60]) == (0.26, 1)


def test_precision_and_recall_in_chunks_are_those_of_brute_force():
    a, b = RNG.standard_normal((2, 1500, 3))
    whole = precision_recall(a, b + 0.5, neighbours=2)
    with sklearn.config_context(working_memory=1):  # in MiB: 87 rows at a time
        assert precision_recall(a, b + 0.5, neighbours=2) == whole
    distances = np.linalg.norm(b[:, None] - b, axis=-1)
    radius = np.sort(distances, axis=1)[:, 2]
    inside = (np.linalg.norm(a[:, None] - b - 0.5, axis=-1) <= radius).any(1)
    assert whole[0] == np.mean(inside)


def test_sets_that_do_not_fit_are_refused():
    few, many, wide = np.zeros((3, 2)), np.zeros((30, 2)), np.zeros((30, 3))
    for distance in (kernel_distance, precision_recall):
        with pytest.raises(InputError, match=r"feature mismatch: unnamed \(2\) and unnamed \(3\)"):
            distance(many, wide)
    with pytest.raises(InputError, match="20 samples of each set"):
        kernel_distance(few, many)
    with pytest.raises(InputError, match="less than the members of both sets, 3 and 30; got 3"):
        precision_recall(few, many)


def test_only_inception_has_a_fid():
    names = ("inception", "inception-clean", "inception-adm", "pixels")
    assert [distance_name("Fréchet", name) for name in names] == [
        *("FID", "FID (clean)", "FID (ADM)", "Fréchet distance (pixels)")
    ]
    assert distance_name("Spatial", "inception-adm") == "sFID (ADM)"
    assert distance_name("Kernel", "inception") == "KID"
