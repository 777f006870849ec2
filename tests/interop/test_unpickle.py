"""Pickles are read as data; nothing in them is executed."""

import builtins
import collections
import contextlib
import os
import pickle
import pickletools
import struct
import sys
import time
import types

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.interop.unpickle import Inert, unpickle
from tests.conftest import GOLDEN

CHECKPOINT = GOLDEN / "small.reference.pkl"


def read(tmp_path, content: bytes):
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return unpickle(path)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_back(tmp_path, protocol):
    data = {
        "numbers": [1, -(2**40), 2.5, True, None],
        "text": "é",
        "nested": {"list": [[], {}], 3: "three"},
        "arrays": [
            np.arange(6, dtype=np.float32).reshape(2, 3),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(3, dtype=">i4"),
            np.zeros((0, 4)),
            np.array(3.5),
        ],
        "jax": jnp.arange(4.0),
        "half": np.ones(3, ml_dtypes.bfloat16),
        "scalar": np.float32(1.5),
        "ordered": collections.OrderedDict(a=1),
    }
    read_back = read(tmp_path, pickle.dumps(data, protocol=protocol))
    assert read_back["numbers"] == data["numbers"]
    assert (read_back["text"], read_back["nested"]) == (data["text"], data["nested"])
    for ours, theirs in zip(read_back["arrays"], data["arrays"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(read_back["jax"], np.arange(4.0))
    np.testing.assert_array_equal(read_back["half"], data["half"])
    assert float(read_back["scalar"]) == 1.5
    assert read_back["ordered"] == {"a": 1}


def test_flax_containers_are_dictionaries(tmp_path, monkeypatch):
    module = types.ModuleType("flax.core.frozen_dict")
    frozen = type("FrozenDict", (Calls,), {"__module__": module.__name__})
    module.FrozenDict = frozen
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "flax", types.ModuleType("flax"))
    monkeypatch.setitem(sys.modules, "flax.core", types.ModuleType("flax.core"))
    content = pickle.dumps({"params": frozen(frozen, {"a": frozen(frozen, {"b": np.ones(2)})})})
    np.testing.assert_array_equal(read(tmp_path, content)["params"]["a"]["b"], np.ones(2))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["top", "optimiser", "array", "key", "chain"])
def test_nothing_in_a_file_is_ever_executed(tmp_path, monkeypatch, protocol, place):
    witness = tmp_path / "executed"
    command = f"import pathlib; pathlib.Path({str(witness)!r}).touch()"
    attacks = [
        Calls(os.system, f"touch {witness}"),
        Calls(builtins.exec, command),
        Calls(builtins.eval, f"__import__('os').system('touch {witness}')"),
        Calls(builtins.getattr, Calls(__import__, "os"), "system"),
    ]
    for attack in attacks:
        if place == "top":
            data = attack
        elif place == "optimiser":
            data = {"params": {"a": np.zeros(2)}, "opt_state": [attack, {"mu": attack}]}
        elif place == "array":
            data = {"params": {"a": np.array([attack], dtype=object)}}
        elif place == "key":
            data = [(attack, 1)]
        else:
            data = Calls(map, attack, [Calls(builtins.print, attack)])
        with contextlib.suppress(odelt.InputError):
            read(tmp_path, pickle.dumps(data, protocol=protocol))
        assert not witness.exists()


def test_an_unknown_class_is_an_inert_record(tmp_path):
    found = read(tmp_path, pickle.dumps({"a": Calls(os.getcwd)}))["a"]
    assert isinstance(found, Inert)
    assert "getcwd" in repr(found)


def test_the_recorded_checkpoint_keeps_its_weights_when_its_optimiser_is_hostile(tmp_path):
    content = unpickle(CHECKPOINT)
    content["opt_state"] = Calls(os.system, f"touch {tmp_path / 'executed'}")
    found = read(tmp_path, pickle.dumps(content))
    assert found["params"].keys() == content["params"].keys()
    assert not (tmp_path / "executed").exists()


def test_a_hundred_damaged_files_are_refused_in_one_line_each(tmp_path):
    whole = CHECKPOINT.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for index in range(100):
        damaged = bytearray(whole[: 3000 + int(rng.integers(200_000))] if index % 2 else whole)
        # Among the instructions, where damage does harm: inside an array it is another number.
        for place in rng.integers(0, 3000, size=40):
            damaged[place] = rng.integers(256)
        began = time.monotonic()
        try:
            read(tmp_path, bytes(damaged))
        except odelt.InputError as error:
            refused.append(str(error))
        assert time.monotonic() - began < 10
    assert len(refused) == 100
    for message in refused:
        assert "\n" not in message
        assert "is damaged or not a checkpoint: " in message


def test_a_truncated_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(odelt.InputError, match="is damaged or not a checkpoint: "):
        read(tmp_path, CHECKPOINT.read_bytes()[:100_000])


def shared(levels: int) -> bytes:
    """A tuple of shared tuples: printing or hashing it takes 2^levels steps."""
    return b"N" + b"2\x86" * levels


DTYPE = b"cnumpy\ndtype\n"
ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN\x85R(K\x01K\x01\x85"
TYPE = b"X\x02\0\0\0f4\x85R"
BUFFER = b"\x80\x04cnumpy.core.numeric\n_frombuffer\n("

BOMBS = {
    "an element type of shared tuples": ARRAY + DTYPE + shared(40) + b"\x85R\x89C\x04abcdtb.",
    "a byte order of shared tuples": ARRAY
    + DTYPE
    + TYPE
    + b"(K\x03"
    + shared(40)
    + b"tb\x89C\x04abcdtb.",
    "a name of shared tuples": b"\x80\x04" + shared(40) + b"X\x01\0\0\0a\x93.",
    "an encoding of shared tuples": b"\x80\x02c_codecs\nencode\nX\x01\0\0\0a"
    + shared(40)
    + b"\x86R.",
    "a buffer that is a number": BUFFER
    + b"\x8a\x08"
    + struct.pack("<q", 2**40)
    + DTYPE
    + TYPE
    + b"K\x01\x85X\x01\0\0\0CtR.",
    "a string that claims a terabyte": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "a bytearray that claims a terabyte": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a memo key of 2^32 - 1": b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b"0.",
    "arguments that are bytes": b"\x80\x03ca\nb\nC\x04abcdR.",
    "arguments that are a list": b"\x80\x02ca\nb\n]R.",
    "names joined again and again": b"\x80\x04X\xc8\0\0\0"
    + b"a" * 200
    + b"\x94("
    + b"h\0h\0\x93" * 1000
    + b"l.",
    "a list in itself": b"\x80\x04]\x94h\x00a.",
    "a long text number": b"I" + b"9" * 10_000 + b"\n.",
    "nothing": b"",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_file_that_claims_too_much_is_refused_at_once(tmp_path, content):
    began = time.monotonic()
    with pytest.raises(odelt.InputError, match="is damaged or not a checkpoint"):
        read(tmp_path, content)
    assert time.monotonic() - began < 2


def test_keys_of_shared_tuples_are_left_out(tmp_path):
    content = b"\x80\x02}(" + shared(40) + b"K\x01X\x01\0\0\0aK\x02u."
    began = time.monotonic()
    assert read(tmp_path, content) == {"a": 2}
    assert time.monotonic() - began < 2


def test_shared_objects_are_read_once(tmp_path):
    nested = []
    for _ in range(40):
        nested = [nested, nested]  # 2^40 lists if each were read anew
    began = time.monotonic()
    read(tmp_path, pickle.dumps(nested))
    assert time.monotonic() - began < 2


def test_a_shape_that_does_not_fit_its_bytes_is_refused(tmp_path):
    content = pickle.dumps(np.zeros(4, np.float32), protocol=4)
    instructions = pickletools.genops(content)
    shape = next(at for op, value, at in instructions if (op.name, value) == ("BININT1", 4))
    larger = content[: shape + 1] + b"\x05" + content[shape + 2 :]
    with pytest.raises(odelt.InputError, match="is damaged or not a checkpoint"):
        read(tmp_path, larger)


def test_a_file_larger_than_memory_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "huge.pkl"
    with path.open("wb") as file:
        file.truncate(2**41)
    with pytest.raises(odelt.InputError, match=r"has 2048\.0 GiB, more than the"):
        unpickle(path)


def test_a_missing_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(odelt.InputError, match="there is no file"):
        unpickle(tmp_path / "nothing.pkl")


def test_a_file_is_read_where_the_system_does_not_tell_its_memory(tmp_path, monkeypatch):
    """As Windows does not."""
    monkeypatch.delattr(os, "sysconf")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert unpickle(tmp_path / "a.pkl") == {"a": 1}
