"""Checkpoints of SiT and REPA: their velocities, their names, and the way back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import odelt_eqx as odelt
from odelt_eqx.interop import dit_from_sit
from odelt_eqx.interop.named import Stored, read_safetensors
from odelt_eqx.interop.torch_file import open_torch
from odelt_eqx.presets import preset
from odelt_eqx.training.load import run_config
from odelt_eqx.training.weights import convert
from tests.conftest import GOLDEN, assert_matches, golden_weight

PLAIN = {"wiring": "residual", "length_embedding": "none"}
WIRINGS = [
    {},
    PLAIN,
    {**PLAIN, "length_embedding": "edge", "stacked": True},
    {**PLAIN, "length_embedding": "depth", "depth_group": 3, "depth_min": 3},
    {**PLAIN, "logit_scale": "inverse-sqrt"},
]
"""All but the first are plain transformers at full depth."""


def config_of(recorded, **changes):
    """The config of a recorded network, by default in groups of one block."""
    shape = json.loads(str(recorded["config"]))
    names = {"input_size": "image_size", "in_channels": "channels"}
    shape = {names.get(name, name): value for name, value in shape.items()}
    return odelt.DiTConfig(**{"depth_min": 1, "depth_group": 1, **shape, **changes})


def stored(arrays):
    """Arrays as those of an open file."""
    return {n: Stored(array.shape, lambda array=array: array) for n, array in arrays.items()}


def golden_weights(recorded):
    """The weights of a recorded network, by name."""
    shapes = json.loads(str(recorded["names"]))
    halved = lambda name: "adaLN" in name or name.startswith("final_layer.linear")
    return {n: golden_weight(n, s) / (1 + halved(n)) for n, s in shapes.items()}


def velocity(model, recorded, depth):
    x = jnp.asarray(recorded["x"]).transpose(0, 2, 3, 1)
    index = model.config.flow_index
    v = model(jnp.asarray(recorded["t"]), x, index, jnp.asarray(recorded["y"]), depth=depth)
    return v.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("changes", WIRINGS, ids=["accumulate", "none", "edge", "depth", "sqrt"])
@pytest.mark.parametrize(("name", "what"), [("sit", "velocity"), ("repa", "ours")])
def test_the_recorded_velocities_are_matched(name, what, changes):
    recorded = np.load(GOLDEN / f"{name}.npz")
    config = config_of(recorded, **changes)
    model = dit_from_sit(stored(golden_weights(recorded)), config)
    assert model.config == dataclasses.replace(config, ignore_step=True)
    depths = ("plain", config.depth) if changes else ("plain",)
    for depth in depths:
        assert_matches(velocity(model, recorded, depth), recorded[what])


TINY_SIT = np.load(GOLDEN / "sit_tiny.npz")
CONFIG = config_of(TINY_SIT, **PLAIN)


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("file", ["bare", "training", "legacy", "half"])
def test_each_kind_of_file_is_read(file, weights):
    """Bare and with both sets of weights, of either format, in float32, float16 and bfloat16."""
    model = odelt.load_sit(GOLDEN / f"sit_tiny.{file}.pt", CONFIG, weights)
    recorded = TINY_SIT["velocity"]
    ours = velocity(model, TINY_SIT, CONFIG.depth)
    if file == "half" or (file, weights) == ("legacy", "model"):
        np.testing.assert_allclose(ours, recorded, rtol=0, atol=0.01 * np.abs(recorded).max())
    else:
        assert_matches(ours, recorded)


def test_a_file_of_several_networks_is_refused(tmp_path):
    recorded = np.load(GOLDEN / "sit.npz")
    weights, config = [golden_weights(recorded)] * 2, config_of(recorded, **PLAIN)
    path = tmp_path / "both.safetensors"
    named = [{f"{n}.{k}": a for k, a in w.items()} for n, w in zip("ab", weights, strict=True)]
    safetensors.numpy.save_file(named[0] | named[1], path)
    with pytest.raises(odelt.InputError, match=r"holds several networks, called a\., b\."):
        odelt.load_sit(path, config)


def test_a_checkpoint_becomes_a_run_that_samples_as_sit(tmp_path):
    run = dataclasses.replace(preset("sit-b"), model=CONFIG)
    convert(GOLDEN / "sit_tiny.training.pt", tmp_path / "run", run)
    assert run_config(tmp_path / "run").sample.guidance == 1.5
    model = odelt.load(tmp_path / "run")
    assert_matches(velocity(model, TINY_SIT, CONFIG.depth), TINY_SIT["velocity"])
    noise = jax.random.normal(jax.random.key(0), (2, *model.shape))
    labels = jnp.array([0, 2])
    images = odelt.sample(model, noise, labels, time=odelt.FixedSteps(2))
    x = noise
    for t in (0.0, 0.5):
        x = x + 0.5 * model(t, x, CONFIG.flow_index, labels, depth="plain")
    np.testing.assert_allclose(images, x, rtol=1e-5, atol=1e-5)


def test_the_way_back_is_sits_own_file(tmp_path):
    """Names, shapes and values are those of the file that PyTorch wrote, but for the variance."""
    path = tmp_path / "back.safetensors"
    run = dataclasses.replace(preset("sit-b"), model=CONFIG)
    convert(GOLDEN / "sit_tiny.bare.pt", tmp_path / "run", run)
    for ema, model in zip(
        *(jax.tree.leaves(odelt.load(tmp_path / "run", w)) for w in ("ema", "model")), strict=True
    ):
        np.testing.assert_array_equal(ema, model)
    convert(tmp_path / "run", path, preset("sit-b"), layout="sit")
    back = read_safetensors(path)
    with open_torch(GOLDEN / "sit_tiny.bare.pt") as content:
        assert set(back) == set(content)
        for name, tensor in content.items():
            theirs, ours = tensor.read(), back[name]
            if name.startswith("final_layer.linear"):
                ours, theirs = (a.reshape(4, 2, 4, -1)[:, 0] for a in (ours, theirs))
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    again = odelt.load_sit(path, CONFIG)
    assert_matches(velocity(again, TINY_SIT, CONFIG.depth), TINY_SIT["velocity"])
    convert(path, tmp_path / "again", run)
    loaded = odelt.load(tmp_path / "again")
    assert_matches(velocity(loaded, TINY_SIT, CONFIG.depth), TINY_SIT["velocity"])


def test_a_constant_embedding_of_the_step_is_written_into_that_of_the_time(tmp_path):
    length = odelt.FixedSteps(adjoint="recompute")  # what training keeps changes no velocity
    changes = {"stacked": True, "logit_scale": "inverse-sqrt", "projector": True}
    config = dataclasses.replace(CONFIG, ignore_step=True, length=length, **changes)
    model = config.build(key=jax.random.key(0))
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    model = jax.tree.unflatten(structure, drawn)
    odelt.save_sit(model, tmp_path / "sit.safetensors")
    again = odelt.load_sit(
        tmp_path / "sit.safetensors", dataclasses.replace(CONFIG, projector=True)
    )
    assert again.projector is None  # sampling needs none
    assert_matches(velocity(again, TINY_SIT, 2), velocity(model, TINY_SIT, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wiring": "accumulate"}, "the wiring residual"),
        ({"length": odelt.FixedSteps(2)}, "one Euler step per group"),
        ({"depth": 3, "depth_group": 2, "depth_min": 3}, "no block outside of the groups"),
        ({"length_embedding": "edge"}, "no length embedding"),
        ({"ignore_step": False}, "steps that are ignored"),
        ({"num_classes": None}, "classes as its condition"),
        ({"image_size": (4, 8)}, "square images"),
    ],
)
def test_a_network_that_sit_cannot_run_is_not_written(tmp_path, changes, message):
    config = dataclasses.replace(CONFIG, **{"ignore_step": True, **changes})
    with pytest.raises(odelt.InputError, match=f"SiT's layout is for networks with .*{message}"):
        odelt.save_sit(config.build(key=jax.random.key(0)), tmp_path / "sit.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, "qk_norm False; got True"),
        ({"norm": "rms"}, "norm layer; got rms"),
        ({"rope": True}, "rope False; got True"),
        ({"mlp": "swiglu"}, "mlp gelu; got swiglu"),
        ({"modulation": "shared"}, "modulation block; got shared"),
    ],
)
def test_another_block_than_sits_is_neither_read_nor_written(tmp_path, changes, message):
    config = dataclasses.replace(CONFIG, ignore_step=True, **changes)
    with pytest.raises(odelt.InputError, match=f"blocks of SiT have {message}"):
        odelt.save_sit(config.build(key=jax.random.key(0)), tmp_path / "sit.safetensors")
    with pytest.raises(odelt.InputError, match=f"blocks of SiT have {message}"):
        odelt.load_sit(GOLDEN / "sit_tiny.bare.pt", config)


def test_a_network_whose_condition_is_a_vector_is_none_of_sit():
    config = dataclasses.replace(CONFIG, num_classes=None, condition_size=3)
    recorded = np.load(GOLDEN / "sit.npz")
    weights = {n: a for n, a in golden_weights(recorded).items() if not n.startswith("y_embedder")}
    with pytest.raises(odelt.InputError, match="of SiT have classes as their condition"):
        dit_from_sit(stored(weights), config)


def test_what_is_missing_left_over_or_misshapen_is_listed_by_name():
    recorded = np.load(GOLDEN / "sit.npz")
    weights, config = golden_weights(recorded), config_of(recorded, **PLAIN)
    other = weights | {"blocks.0.attn.q_norm.weight": np.zeros(12)}
    del other["blocks.5.mlp.fc2.bias"]
    with pytest.raises(
        odelt.InputError, match=r"missing: .*5\.mlp\.fc2\.bias; left over: .*q_norm"
    ):
        dit_from_sit(stored(other), config)
    for changes, name in (
        ({"hidden_size": 96}, "x_embedder.proj.bias"),
        ({"channels": 1}, "final_layer.linear.weight"),
        ({"num_classes": 5}, "y_embedder.embedding_table.weight"),
    ):
        with pytest.raises(odelt.InputError, match=f"of another shape .*{name}"):
            dit_from_sit(stored(weights), dataclasses.replace(config, **changes))
    bias = "blocks.3.mlp.fc1.bias"
    with pytest.raises(odelt.InputError, match=f"{bias} of the checkpoint has values that are not"):
        dit_from_sit(stored(weights | {bias: np.full(192, np.nan, np.float16)}), config)
    table = golden_weight("pos_embed", (1, 16, 48))
    with pytest.raises(odelt.InputError, match="not the fixed table of sines and cosines"):
        dit_from_sit(stored(weights | {"pos_embed": table}), config)
    with pytest.raises(odelt.InputError, match=r"pos_embed has shape \(1, 4, 48\)"):
        dit_from_sit(stored(weights | {"pos_embed": table[:, :4]}), config)


def test_a_network_without_projectors_or_variance_is_sits_unless_it_is_said_to_be_repas():
    recorded = np.load(GOLDEN / "repa.npz")
    weights = golden_weights(recorded)
    weights = {n: a for n, a in weights.items() if not n.startswith("projectors")}
    config = config_of(recorded, **PLAIN)
    repa = dit_from_sit(stored(weights), config, "repa")
    assert_matches(velocity(repa, recorded, "plain"), recorded["ours"])
    with pytest.warns(UserWarning, match="if it is a REPA without projectors, say repa"):
        sit = dit_from_sit(stored(weights), config)
    reversed_time = dict(recorded) | {"t": 1 - recorded["t"]}
    assert_matches(-velocity(sit, reversed_time, "plain"), recorded["ours"])


@pytest.mark.parametrize(("name", "count"), [("sit-b", 12), ("sit-xl", 28)])
def test_presets_have_the_published_shapes(name, count):
    config = preset(name)
    assert (config.model.depth, config.model.ignore_step) == (count, True)
    assert config.model.dead_blocks == 0
