"""The stream: every example once an epoch, in an order by seed, from any place on."""

import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.data import ArraySource, digits, stream


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
