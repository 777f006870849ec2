"""The stream: every example once an epoch, in an order by seed, from any batch on."""

import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.data import ArraySource, Folder, HeldOut, Loading, digits, stream


@pytest.fixture(scope="module")
def source():
    images = np.arange(12, dtype=np.float32).reshape(12, 1, 1, 1)
    return ArraySource(images, np.arange(12, dtype=np.int32))


def labels(batches, count):
    return np.concatenate([next(batches)["condition"] for _ in range(count)]).tolist()


def test_an_epoch_has_every_example_once_and_the_next_another_order(source):
    batches = stream(source, 4, seed=0)
    first, second = labels(batches, 3), labels(batches, 3)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_seed_decides_the_order(source):
    assert labels(stream(source, 4, seed=0), 6) == labels(stream(source, 4, seed=0), 6)
    assert labels(stream(source, 4, seed=0), 6) != labels(stream(source, 4, seed=1), 6)


def test_a_stream_starts_at_any_batch(source):
    batches = stream(source, 5, seed=0)
    labels(batches, 4)
    assert labels(stream(source, 5, seed=0, start=4), 4) == labels(batches, 4)


@pytest.mark.parametrize("size", [1, 12])
def test_a_batch_may_be_one_example_or_all(source, size):
    batches = stream(source, size, seed=0)
    assert sorted(labels(batches, 12 // size)) == list(range(12))


def test_processes_share_each_batch(source):
    whole = stream(source, 6, seed=0)
    parts = [stream(source, 6, seed=0, process=i, count=3) for i in range(3)]
    for _ in range(4):
        expected, rows = next(whole), [next(part) for part in parts]
        assert (
            np.concatenate([r["condition"] for r in rows]).tolist()
            == expected["condition"].tolist()
        )
        for row in rows:
            assert row["index"].tolist() == expected["index"].tolist()
    with pytest.raises(odelt.InputError, match="a multiple of the 4 processes; got 6"):
        stream(source, 6, seed=0, count=4)


def test_a_batch_has_examples_and_their_classes(source):
    batch = next(stream(source, 4, seed=0))
    assert batch["x"].shape == (4, 1, 1, 1)
    assert batch["x"].ravel().tolist() == batch["condition"].tolist()


def test_a_batch_larger_than_the_data_is_refused(source):
    with pytest.raises(odelt.InputError, match="between 1 and the 12 examples of the data; got 13"):
        stream(source, 13, seed=0)


def test_the_digits_are_split_evenly_and_without_overlap():
    train, held_out = digits("train"), digits("held-out")
    assert (len(train), len(held_out)) == (1437, 360)
    images = np.concatenate([train.x, held_out.x]).reshape(1797, -1)
    assert (images.min(), images.max()) == (-1, 1)
    assert len(np.unique(images, axis=0)) == 1797
    for part in (train, held_out):
        shares = np.bincount(part.condition) / len(part)
        assert np.abs(shares - 0.1).max() < 0.01


COUNT = 12


def read(start, count, loading, *, processes=1, flip=False):
    """Classes and examples that `processes` read together, from batch `start` on."""
    loading = Loading(flip=flip, **loading)
    source = ArraySource(
        np.linspace(-1, 1, COUNT * 2, dtype=np.float32).reshape(COUNT, 1, 2, 1),
        np.arange(COUNT, dtype=np.int32),
    )
    parts = [
        stream(source, 4, 3, start=start, process=i, count=processes, loading=loading)
        for i in range(processes)
    ]
    try:
        together = [[next(part) for part in parts] for _ in range(count)]
    finally:
        for part in parts:
            part.close()
    whole = lambda name: [np.concatenate([r[name] for r in rows]) for rows in together]
    return np.concatenate(whole("condition")).tolist(), np.concatenate(whole("x"))


@pytest.mark.parametrize(
    ("loading", "processes"), [({}, 1), ({}, 2), ({"workers": 1}, 1)], ids=["1", "2", "worker"]
)
def test_a_stream_resumes_within_an_epoch(loading, processes):
    """Batches of 4 from 12: stopped after 4 batches, one into the second epoch."""
    undisturbed, images = read(0, 9, {}, flip=True)
    labels, rest = read(4, 5, loading, processes=processes, flip=True)
    assert labels == undisturbed[16:]
    np.testing.assert_array_equal(rest, images[16:])
    for epoch in range(3):
        seen = (undisturbed[:16] + labels)[12 * epoch : 12 * (epoch + 1)]
        assert sorted(seen) == list(range(COUNT))


def test_flip_mirrors_half_of_the_images_anew_each_epoch():
    plain_labels, plain = read(0, 30, {})
    labels, images = read(0, 30, {}, flip=True)
    assert labels == plain_labels
    mirrored = (images == plain[:, :, ::-1]).all((1, 2, 3))
    assert ((images == plain).all((1, 2, 3)) ^ mirrored).all()
    assert 0.3 < mirrored.mean() < 0.7
    by_label = np.asarray(mirrored)[np.argsort(labels, kind="stable")].reshape(COUNT, 10)
    assert all(0 < share < 1 for share in by_label.mean(1))


def test_an_error_in_a_worker_is_the_same_line_as_in_this_process(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    source = Folder(tmp_path, size=2, held_out=HeldOut(0.0)).open("train")
    for name in ("a.png", "b.png"):
        (tmp_path / name).unlink()
    for loading in (Loading(), Loading(workers=1)):
        batches = stream(source, 2, 0, loading=loading)
        with pytest.raises(
            odelt.InputError, match=r"2 of 2 images cannot be used, the last .*\.png"
        ):
            next(batches)
        batches.close()


def test_flip_is_for_images_only():
    points = ArraySource(np.zeros((4, 2), np.float32), np.zeros(4, np.int32))
    with pytest.raises(odelt.InputError, match=r"flip mirrors images, .* shape \(2,\)"):
        stream(points, 2, 0, loading=Loading(flip=True))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threads", 0, "threads must be at least 1; got 0"),
        ("workers", -1, "workers must not be negative; got -1"),
        ("buffer", 0, "buffer must be at least 1; got 0"),
    ],
)
def test_counts_of_threads_workers_and_batches_are_checked(field, value, message):
    with pytest.raises(odelt.InputError, match=message):
        Loading(**{field: value})
