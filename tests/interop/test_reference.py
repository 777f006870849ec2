"""Checkpoints of the reference, exchanged and cut."""

import dataclasses
import json
import os
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import odelt_eqx as odelt
from odelt_eqx.interop.named import read_safetensors, write_safetensors
from odelt_eqx.interop.unpickle import unpickle
from odelt_eqx.presets import preset
from tests.conftest import GOLDEN, TINY

CHECKPOINT = GOLDEN / "small.reference.pkl"
CONFIG = odelt.DiTConfig(**json.loads((GOLDEN / "small.json").read_text())["config"])


@pytest.fixture(scope="module")
def content():
    """The recorded checkpoint as plain data."""
    return unpickle(CHECKPOINT) | {"opt_state": None}


def velocity(model):
    recorded = np.load(GOLDEN / "small.forward.npz")
    given = (jnp.asarray(recorded[k]) for k in ("t", "x", "step_index", "labels"))
    return model(*given, depth=3), recorded["velocity/depth_3"]


def written(tmp_path, content):
    path = tmp_path / "checkpoint.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("layout", ["odelt", "shortcut-models", "jax arrays"])
def test_each_layout_gives_the_recorded_velocities(tmp_path, content, layout):
    path = CHECKPOINT
    if layout == "shortcut-models":
        path = written(tmp_path, {"train_state": content, "_timestamp": 0.0})
    elif layout == "jax arrays":
        arrays = jax.tree.map(jnp.asarray, {k: content[k] for k in ("params", "params_ema")})
        path = written(tmp_path, arrays | {"step": jnp.asarray(3)})
    ours, reference = velocity(odelt.load_reference(path, CONFIG, weights="params"))
    np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_the_average_and_the_trained_weights_are_kept_apart(content):
    average = odelt.load_reference(CHECKPOINT, CONFIG)
    trained = odelt.load_reference(CHECKPOINT, CONFIG, weights="params")
    for model, which in ((average, "params_ema"), (trained, "params")):
        stored = content[which]["FinalLayer_0"]["Dense_1"]["bias"]
        np.testing.assert_array_equal(model.final.out.bias, stored)
    assert not np.array_equal(average.final.out.bias, trained.final.out.bias)


def test_a_checkpoint_without_a_length_table_gets_one_and_says_so(tmp_path, content):
    params = {k: v for k, v in content["params"].items() if k != "BlockEmbedder_0"}
    path = written(tmp_path, {"params": params})
    with pytest.warns(UserWarning, match="has no length table: a fresh one is drawn"):
        model = odelt.load_reference(path, CONFIG, weights="params")
    assert 0.01 < float(jnp.std(model.length_embedding.weight)) < 0.03
    with pytest.raises(odelt.InputError, match="holds no params_ema; it has params"):
        odelt.load_reference(path, CONFIG)


def test_what_is_missing_left_over_or_misshapen_is_listed_by_name(tmp_path, content):
    params = dict(content["params"])
    params["Stray_0"] = params.pop("PatchEmbed_0")
    with pytest.raises(
        odelt.InputError,
        match=r"missing: PatchEmbed_0/Conv_0/bias, .*; left over: Stray_0/Conv_0/bias, ",
    ):
        odelt.load_reference(written(tmp_path, {"params": params}), CONFIG, weights="params")
    other = dataclasses.replace(CONFIG, hidden_size=32)
    with pytest.raises(odelt.InputError, match=r"of another shape .*Conv_0/kernel \(2, 2, 1, 16\)"):
        odelt.load_reference(CHECKPOINT, other)


def test_a_checkpoint_has_no_projector_and_no_vector_as_its_condition():
    network = odelt.load_reference(CHECKPOINT, dataclasses.replace(CONFIG, projector=True))
    assert network.config == CONFIG
    vector = dataclasses.replace(CONFIG, num_classes=None, condition_size=3)
    with pytest.raises(odelt.InputError, match="of the reference have classes as their condition"):
        odelt.load_reference(CHECKPOINT, vector)


def test_a_pickle_of_something_else_is_one_line(tmp_path):
    for content in ([1, 2], {"weights": 3}, {"params": {"a": "text"}}):
        with pytest.raises(odelt.InputError):
            odelt.load_reference(written(tmp_path, content), CONFIG)


VECTORS = odelt.VectorNetConfig(size=3, hidden_size=8, depth=4, depth_min=2, depth_group=2)


@pytest.mark.parametrize("kind", ["dit", "vectors"])
def test_safetensors_there_and_back(tmp_path, model, kind):
    network = model if kind == "dit" else VECTORS.build(key=jax.random.key(0))
    path = tmp_path / "model.safetensors"
    odelt.save_safetensors(network, path)
    back = odelt.load_safetensors(path)
    assert back.config == network.config
    for ours, theirs in zip(*map(jax.tree.leaves, (back, network)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX's")
def test_weights_may_be_read_by_whoever_reads_other_files(tmp_path):
    (tmp_path / "other").touch()
    write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(2)}, {})
    assert len({each.stat().st_mode for each in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 100])
def test_a_damaged_safetensors_file_is_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(odelt.InputError, match="is no network of this package"):
        odelt.load_safetensors(path)


def test_arrays_that_no_network_has_are_listed(tmp_path):
    path = tmp_path / "model.safetensors"
    odelt.save_safetensors(VECTORS.build(key=jax.random.key(0)), path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.numpy.save_file(arrays | {"extra": np.zeros(3)}, path, metadata)
    with pytest.raises(odelt.InputError, match="those of its config; left over: extra"):
        odelt.load_safetensors(path)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_elements_of_a_type_that_numpy_lacks_are_one_line(tmp_path, kind):
    path, entry = tmp_path / "x.safetensors", {"dtype": kind, "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"weight": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(odelt.InputError, match=f"elements of type {kind} are not read"):
        read_safetensors(path)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    network = VECTORS.build(key=jax.random.key(0))
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "model.safetensors"):
        with pytest.raises(odelt.InputError, match=f"{path} cannot be written: "):
            odelt.save_safetensors(network, path)


def test_a_network_of_the_users_is_neither_written_nor_truncated(any_types, tmp_path):
    class Still(odelt.Network):
        shape, condition_type, depths, flow_index = (2,), None, (1,), 0
        length, anytime = odelt.FixedSteps(), True

        def velocity(self, inputs):
            return inputs.x, odelt.LengthStats()

    with pytest.raises(odelt.InputError, match=r"only a DiT or a VectorNet .*; got a Still"):
        odelt.save_safetensors(Still(), tmp_path / "still.safetensors")
    with pytest.raises(odelt.InputError, match="VectorNet can be truncated; got a Still"):
        odelt.truncate(Still(), 1)
    network = VECTORS.build(key=jax.random.key(0))
    for depth in ("full", "plain", np.array([2, 4])):
        with pytest.raises(odelt.InputError, match="depth must be one number of blocks; got"):
            odelt.truncate(network, depth)


X = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
LABELS = jnp.array([1, 2])


def test_a_truncated_network_is_the_same_bit_for_bit_and_smaller(model):
    short = odelt.truncate(model, 2)
    assert (short.config.depths, len(short.blocks)) == ((2,), 2)
    np.testing.assert_array_equal(
        short(0.3, X, 7, LABELS, depth=2), model(0.3, X, 7, LABELS, depth=2)
    )


def test_a_network_of_vectors_is_truncated_as_well():
    whole = VECTORS.build(key=jax.random.key(0))
    final = jax.random.normal(jax.random.key(1), whole.final.out.weight.shape)
    whole = eqx.tree_at(lambda m: m.final.out.weight, whole, final)
    short, x = odelt.truncate(whole, 2), jax.random.normal(jax.random.key(2), (5, 3))
    assert short.depths == (2,)
    np.testing.assert_array_equal(short(0.3, x, 7, depth=2), whole(0.3, x, 7, depth=2))


def test_blocks_that_belong_to_no_group_are_left_out():
    config = dataclasses.replace(TINY, depth=7, depth_min=3, depth_group=2)  # as XL: a dead tail
    whole = odelt.DiT(config, key=jax.random.key(0))
    final = jax.random.normal(jax.random.key(1), whole.final.out.weight.shape)
    whole = eqx.tree_at(lambda m: m.final.out.weight, whole, final)
    for depth, blocks in ((3, 2), (5, 4), (7, 6)):
        short = odelt.truncate(whole, depth)
        assert len(short.blocks) == blocks
        assert short.config.depths[-1] == blocks
        np.testing.assert_array_equal(
            short(0.3, X, 7, LABELS, depth=blocks), whole(0.3, X, 7, LABELS, depth=depth)
        )


@pytest.mark.parametrize(
    ("name", "reference"),
    [("celeba-b", 130_334_480), ("imagenet-b", 131_101_712), ("imagenet-xl", 676_474_256)],
)
def test_presets_have_the_published_sizes_without_the_unused_table(name, reference):
    model = eqx.filter_eval_shape(odelt.DiT, preset(name).model, key=jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == reference - 256
