"""The stream: every example once an epoch, in an order by seed, from any place on."""

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
    return np.concatenate([next(batches)["label"] for _ in range(count)]).tolist()


def test_an_epoch_has_every_example_once_and_the_next_another_order(source):
    batches = stream(source, 4, seed=0)
    first, second = labels(batches, 3), labels(batches, 3)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_seed_decides_the_order(source):
    assert labels(stream(source, 4, seed=0), 6) == labels(stream(source, 4, seed=0), 6)
    assert labels(stream(source, 4, seed=0), 6) != labels(stream(source, 4, seed=1), 6)


def test_a_stream_begins_anywhere(source):
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
        assert np.concatenate([r["label"] for r in rows]).tolist() == expected["label"].tolist()
        for row in rows:
            assert row["index"].tolist() == expected["index"].tolist()
    with pytest.raises(odelt.InputError, match="a multiple of the 4 processes; got 6"):
        stream(source, 6, seed=0, count=4)


def test_a_batch_is_images_and_labels(source):
    batch = next(stream(source, 4, seed=0))
    assert batch["image"].shape == (4, 1, 1, 1)
    assert batch["image"].ravel().tolist() == batch["label"].tolist()


def test_more_than_there_is_is_refused(source):
    with pytest.raises(odelt.InputError, match="between 1 and the 12 examples of the data; got 13"):
        stream(source, 13, seed=0)


def test_the_digits_are_split_evenly_and_without_overlap():
    train, held_out = digits("train"), digits("held-out")
    assert (len(train), len(held_out)) == (1437, 360)
    images = np.concatenate([train.images, held_out.images]).reshape(1797, -1)
    assert (images.min(), images.max()) == (-1, 1)
    assert len(np.unique(images, axis=0)) == 1797
    for part in (train, held_out):
        shares = np.bincount(part.labels) / len(part)
        assert np.abs(shares - 0.1).max() < 0.01


PLACES = 12
HOW = [
    pytest.param({}, id="threads"),
    pytest.param({"workers": 1}, id="worker"),
]


def read(start, count, loading, *, processes=1, flip=False):
    """Labels that `processes` read together, batch by batch, from batch `start` on."""
    loading = Loading(flip=flip, **loading)
    source = ArraySource(
        np.linspace(-1, 1, PLACES * 2, dtype=np.float32).reshape(PLACES, 1, 2, 1),
        np.arange(PLACES, dtype=np.int32),
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
    return np.concatenate(whole("label")).tolist(), np.concatenate(whole("image"))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("loading", HOW)
def test_a_run_stopped_within_an_epoch_goes_on_with_what_was_left_of_it(loading, processes):
    """Batches of 4 from 12: stopped after 4 batches, one into the second epoch."""
    undisturbed, images = read(0, 9, {}, flip=True)
    labels, rest = read(4, 5, loading, processes=processes, flip=True)
    assert labels == undisturbed[16:]
    np.testing.assert_array_equal(rest, images[16:])
    for epoch in range(3):
        seen = (undisturbed[:16] + labels)[12 * epoch : 12 * (epoch + 1)]
        assert sorted(seen) == list(range(PLACES))


def test_half_of_the_pictures_are_mirrored_anew_each_epoch():
    plain_labels, plain = read(0, 30, {})
    labels, images = read(0, 30, {}, flip=True)
    assert labels == plain_labels
    mirrored = (images == plain[:, :, ::-1]).all((1, 2, 3))
    assert ((images == plain).all((1, 2, 3)) ^ mirrored).all()
    assert 0.3 < mirrored.mean() < 0.7
    by_label = np.asarray(mirrored)[np.argsort(labels, kind="stable")].reshape(PLACES, 10)
    assert all(0 < share < 1 for share in by_label.mean(1))


def test_a_mistake_in_a_worker_is_the_line_that_it_is_here(tmp_path):
    """Whatever reads, a file that went away stops it with one line."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    source = Folder(tmp_path, size=2, held_out=HeldOut(0.0)).open("train")
    (tmp_path / "a.png").unlink()
    for loading in (Loading(), Loading(workers=1)):
        batches = stream(source, 2, 0, loading=loading)
        with pytest.raises(odelt.InputError, match=r"a\.png cannot be used"):
            next(batches)
        batches.close()


@pytest.mark.parametrize(
    ("field", "value", "least"), [("threads", 0, 1), ("workers", -1, 0), ("buffer", 0, 1)]
)
def test_counts_of_readers_are_checked(field, value, least):
    with pytest.raises(odelt.InputError, match=f"{field} must be at least {least}; got {value}"):
        Loading(**{field: value})
