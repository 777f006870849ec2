"""PyTorch's files are read as data; nothing in them is executed."""

import os
import pickle
import zipfile

import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.interop.named import Stored
from odelt_eqx.interop.torch_file import MAGIC, open_torch
from tests.conftest import GOLDEN, TINY
from tests.interop.test_unpickle import Calls

BARE = GOLDEN / "sit_tiny.bare.pt"
TRAINING = GOLDEN / "sit_tiny.training.pt"
LEGACY = GOLDEN / "sit_tiny.legacy.pt"


def arrays(path):
    """The arrays of a bare state dict, or of both in a file, by name."""
    with open_torch(path) as content:
        dicts = [content[entry] for entry in ("model", "ema") if entry in content] or [content]
        return [{name: tensor.read().copy() for name, tensor in each.items()} for each in dicts]


def test_the_rest_of_a_checkpoint_is_plain_containers_and_inert_records():
    with open_torch(TRAINING) as content:
        assert set(content) == {"model", "ema", "opt", "args"}
        assert content["args"].name == "argparse.Namespace"
        assert content["opt"]["param_groups"][0]["lr"] == 1e-3
        assert isinstance(content["opt"]["state"][1]["exp_avg"], Stored)


def test_views_of_one_storage_and_strides_are_followed():
    """The average of this file is one array, but for a matrix that is stored transposed."""
    (apart,), (halved, together) = arrays(BARE), arrays(LEGACY)
    for name, array in apart.items():
        np.testing.assert_array_equal(together[f"module.{name}"], array)
        near = halved[name]
        assert near.dtype == "bfloat16"
        np.testing.assert_allclose(near.astype(np.float32), array, rtol=0.01, atol=1e-6)


def zipped(tmp_path, content: bytes, **members: bytes):
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/data.pkl", content)
        for name, data in members.items():
            archive.writestr(f"file/{name}", data)
    return path


def legacy(tmp_path, content: bytes):
    path = tmp_path / "file.pt"
    head = [pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*head, content, pickle.dumps([], protocol=2)]))
    return path


@pytest.mark.parametrize("write", [zipped, legacy])
def test_nothing_in_a_file_is_ever_executed(tmp_path, write):
    witness = tmp_path / "executed"
    attack = Calls(os.system, f"touch {witness}")
    for data in (attack, {"model": attack}, {"model": {"x_embedder.proj.weight": attack}}):
        with pytest.raises(odelt.InputError, match="no checkpoint of SiT"):
            odelt.load_sit(write(tmp_path, pickle.dumps(data, protocol=2)), TINY)
        assert not witness.exists()


def tensor_pickle(kind="FloatStorage", count=4, offset=0, shape=(4,), strides=(1,)) -> bytes:
    """The pickle of `{"a": tensor}`, instruction by instruction."""
    text = lambda value: b"X" + len(value).to_bytes(4, "little") + value.encode()
    number = lambda value: pickle.dumps(value, protocol=2)[2:-1]
    tuple_of = lambda *items: b"(" + b"".join(items) + b"t"
    storage = tuple_of(
        text("storage"), f"ctorch\n{kind}\n".encode(), text("0"), text("cpu"), number(count)
    )
    arguments = tuple_of(
        storage + b"Q",
        number(offset),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        b"\x89",
        b"N",
    )
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return b"\x80\x02}(" + text("a") + rebuild + arguments + b"Ru."


def read(path):
    with open_torch(path) as content:
        return content["a"].read()


FOUR = {"data/0": np.arange(4, dtype="f4").tobytes()}


def test_element_types_and_the_byte_order_are_followed(tmp_path):
    np.testing.assert_array_equal(read(zipped(tmp_path, tensor_pickle(), **FOUR)), range(4))
    swapped = {"data/0": np.arange(4, dtype=">f4").tobytes(), "byteorder": b"big"}
    array = read(zipped(tmp_path, tensor_pickle(), **swapped))
    np.testing.assert_array_equal(array, range(4))
    assert array.dtype.isnative
    view = tensor_pickle(offset=1, shape=(2, 2), strides=(0, 2))
    np.testing.assert_array_equal(read(zipped(tmp_path, view, **FOUR)), [[1, 3], [1, 3]])
    empty = tensor_pickle(count=0, shape=(0, 3), strides=(3, 1))
    assert read(zipped(tmp_path, empty, **{"data/0": b""})).shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "members", "message"),
    [
        ({"shape": (5,)}, FOUR, r"a tensor of shape \(5,\) in 4 elements"),
        ({"offset": 1}, FOUR, r"a tensor of shape \(4,\) in 4 elements"),
        ({"offset": -1}, FOUR, "shape or strides are out of range"),
        ({"strides": (2**40,)}, FOUR, "in 4 elements"),
        ({"shape": (2**60,), "strides": (0,)}, FOUR, "shape or strides are out of range"),
        ({"count": 2**40, "shape": (2**40,)}, FOUR, "has 16 bytes, not 4398046511104"),
        ({"kind": "QInt8Storage"}, FOUR, "elements of a QInt8Storage are not read"),
        ({}, {}, "There is no item named"),
        ({}, {"data/../0": FOUR["data/0"]}, "There is no item named"),
    ],
)
def test_a_tensor_that_does_not_fit_its_file_is_refused(tmp_path, changes, members, message):
    path = zipped(tmp_path, tensor_pickle(**changes), **members)
    with pytest.raises(odelt.InputError, match=f"is damaged or not a checkpoint: .*{message}"):
        read(path)


HOSTILE = {
    "a name of many parts": b"(X\6\0\0\0module" + b"N" * 9 + b"tQ.",
    "a type of itself": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
    b"(h\x00N(ctorch._utils\n_rebuild_parameter\nNN\x85ttR.",
    "a type of a list": b"ctorch._tensor\n_rebuild_from_type_v2\n"
    b"(ctorch._utils\n_rebuild_parameter\nN]NatR.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_would_be_copied_without_count_is_refused(tmp_path, content):
    path = zipped(tmp_path, b"\x80\x02" + content)
    with pytest.raises(odelt.InputError, match="is damaged or not a checkpoint"), open_torch(path):
        pass


def test_a_compressed_member_is_refused(tmp_path):
    path = zipped(tmp_path, tensor_pickle())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file/data/0", bytes(2**24))
    with pytest.raises(odelt.InputError, match="is compressed"):
        read(path)


@pytest.mark.parametrize("path", [BARE, LEGACY], ids=["zip", "legacy"])
def test_damaged_files_are_refused_in_one_line_or_read_as_they_are(tmp_path, path):
    """A flipped byte of a zip is noticed by its checksum; the older format has none."""
    whole, right = path.read_bytes(), arrays(path)
    rng = np.random.default_rng(0)
    messages = []
    for index in range(60):
        damaged = bytearray(whole)
        place = int(rng.integers(6_000 if index % 2 else len(whole)))
        damaged[place] ^= int(rng.integers(1, 256))
        file = tmp_path / "damaged.pt"
        file.write_bytes(damaged[:place] if index % 10 == 0 else damaged)
        try:
            found = arrays(file)
        except odelt.InputError as error:
            messages.append(str(error))
        except (KeyError, AttributeError):  # another name, or no array: not this reader's to judge
            pass
        else:
            for name in right[0] if path == BARE else ():
                np.testing.assert_array_equal(found[0].get(name, right[0][name]), right[0][name])
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x80\x02K\x01.", b"text"])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(odelt.InputError, match="is damaged or not a checkpoint"), open_torch(path):
        pass
    with pytest.raises(odelt.InputError, match="there is no file"), open_torch(tmp_path / "none"):
        pass
