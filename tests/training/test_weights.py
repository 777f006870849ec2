"""Weights from other runs and files: converted to runs, and runs started from them."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.commands import convert as command
from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.interop.unpickle import unpickle
from odelt_eqx.nn import unstacked
from odelt_eqx.objective import TRAIN_TYPES
from odelt_eqx.presets import preset
from odelt_eqx.training.load import CONTENTS, load_contents, run_config
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state
from odelt_eqx.training.train import train
from odelt_eqx.training.weights import convert, init_from, read_weights
from tests.conftest import GOLDEN, TINY_RUN, assert_matches
from tests.training.conftest import POINTS_RUN

pytestmark = pytest.mark.thorough

CHECKPOINT = GOLDEN / "small.reference.pkl"
SMALL = TrainConfig(
    model=odelt.DiTConfig(**json.loads((GOLDEN / "small.json").read_text())["config"]),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=1),
    steps=2,
    batch_size=16,
)


def fresh_state(model=SMALL.model, seed=0):
    """The state before the first step of a run of `SMALL`."""
    optimizer = make_optimizer(SMALL.optimizer, 10)
    return init_state(model.build(key=jax.random.key(seed)), optimizer)


def assert_same(a, b):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The recorded checkpoint as a run folder."""
    folder = tmp_path_factory.mktemp("converted") / "run"
    convert(CHECKPOINT, folder, SMALL)
    return folder


def test_a_converted_checkpoint_is_a_run_with_both_sets_of_weights(run):
    for ours, theirs in (("ema", "params_ema"), ("model", "params")):
        assert_same(
            odelt.load(run, ours), odelt.load_reference(CHECKPOINT, SMALL.model, weights=theirs)
        )


def test_a_converted_run_cannot_be_resumed_but_started_from(run, points_run, tmp_path):
    with pytest.raises(odelt.InputError, match="has no checkpoint to resume"):
        train(SMALL, run, resume=True)
    network = POINTS_RUN.model.build(key=jax.random.key(7))
    odelt.save_safetensors(network, tmp_path / "network.safetensors")
    convert(tmp_path / "network.safetensors", tmp_path / "run", POINTS_RUN)
    config = dataclasses.replace(POINTS_RUN, init_from=str(tmp_path / "run"))
    started = train(config, tmp_path / "started")
    weight = lambda model: np.asarray(model.embedding.weight)
    assert np.abs(weight(started.model) - weight(network)).max() < 0.01
    assert np.abs(weight(odelt.load(points_run)) - weight(network)).max() > 0.1


def test_the_average_is_not_overwritten_by_the_trained_weights(run):
    begun = init_from(fresh_state(), run)
    assert_same(begun.model, odelt.load(run, "model"))
    assert_same(begun.ema, odelt.load(run, "ema"))


def test_stacked_networks_are_converted_and_begun_as_any_other(run, tmp_path):
    model = dataclasses.replace(SMALL.model, stacked=True)
    convert(CHECKPOINT, tmp_path / "run", dataclasses.replace(SMALL, model=model))
    assert run_config(tmp_path / "run").model.stacked
    assert_same(odelt.load(tmp_path / "run"), odelt.load(run))
    state = fresh_state(model)
    begun = init_from(state, run)
    assert jax.tree.structure(begun.ema) == jax.tree.structure(state.ema)
    assert_same(unstacked(begun.ema), odelt.load(run))


@pytest.fixture(scope="module")
def plain_dit(tmp_path_factory):
    """The recorded checkpoint as a DiT without a length has it: no length table, no average."""
    params = {k: v for k, v in unpickle(CHECKPOINT)["params"].items() if k != "BlockEmbedder_0"}
    path = tmp_path_factory.mktemp("plain") / "dit.pkl"
    path.write_bytes(pickle.dumps({"params": params}))
    run = path.with_name("run")
    with pytest.warns(UserWarning, match="has no length table: a fresh one is drawn"):
        convert(path, run, SMALL)
    return run


def test_a_plain_dit_is_fine_tuned_from_where_the_published_code_would(plain_dit):
    """All of it is taken over; only the length table is new, drawn as the published one is."""
    state = fresh_state(seed=3)
    source = odelt.load_reference(CHECKPOINT, SMALL.model, "params")
    begun = init_from(state, plain_dit)
    table = lambda model: model.length_embedding.weight
    for weights in (begun.model, begun.ema):
        assert_same(eqx.tree_at(table, weights, table(source)), source)
        assert 0.01 < float(np.std(table(weights))) < 0.03
    recorded = np.load(GOLDEN / "small.forward.npz")
    given = (jax.numpy.asarray(recorded[k]) for k in ("t", "x", "step_index", "labels"))
    length = eqx.tree_at(table, begun.model, table(source))(*given, depth=3)
    assert_matches(length, recorded["velocity/depth_3"])
    assert int(begun.step) == 0
    assert_same(begun.opt_state, state.opt_state)


@pytest.mark.parametrize("name", ["rfm", "shortcut"])
def test_a_flow_and_a_shortcut_model_exchange_their_weights(run, name):
    """Whether a network sees its step index is the new run's to say."""
    objective = TRAIN_TYPES[name]
    config = dataclasses.replace(SMALL, objective=objective)
    begun = init_from(fresh_state(config.model, seed=3), run)
    assert begun.model.config.ignore_step != objective.trains_steps
    assert_same(jax.tree.leaves(begun.ema), jax.tree.leaves(odelt.load(run)))


@pytest.mark.parametrize("told", ["none", "edge"])
def test_a_run_begins_from_weights_with_another_wiring_and_embedding_of_the_length(tmp_path, told):
    """What both have in common is taken over; an embedding that only the run has is zero."""
    plain = dataclasses.replace(SMALL.model, wiring="residual", length_embedding="none")
    source = plain.build(key=jax.random.key(5))
    odelt.save_safetensors(source, tmp_path / "plain.safetensors")
    state = fresh_state(seed=3)
    begun = init_from(state, tmp_path / "plain.safetensors").model
    assert begun.config == SMALL.model
    table = lambda model: model.length_embedding.weight
    np.testing.assert_array_equal(table(begun), np.zeros_like(table(state.model)))
    assert_same(begun.blocks, source.blocks)
    begun = eqx.tree_at(table, begun, table(state.model))
    odelt.save_safetensors(begun, tmp_path / "published.safetensors")
    model = dataclasses.replace(plain, length_embedding=told)
    back = init_from(fresh_state(model), tmp_path / "published.safetensors").model
    assert back.config == model
    assert_same(back.condition_embedding, source.condition_embedding)
    if told == "edge":
        assert_same(back.length_embedding, begun.length_embedding)


def test_a_residual_network_begins_as_the_plain_one_it_comes_from(tmp_path):
    plain = dataclasses.replace(SMALL.model, wiring="residual", length_embedding="none")
    source = plain.build(key=jax.random.key(5))
    odelt.save_safetensors(source, tmp_path / "plain.safetensors")
    told = dataclasses.replace(plain, length_embedding="edge")
    begun = init_from(fresh_state(told), tmp_path / "plain.safetensors").model
    x = jax.random.normal(jax.random.key(1), (2, *plain.shape))
    np.testing.assert_allclose(
        begun(0.3, x, 2, [0, 1]), source(0.3, x, 2, [0, 1], depth="plain"), rtol=1e-5, atol=1e-5
    )


def test_a_network_that_is_told_guidance_begins_as_one_that_is_not(points_run):
    shape = dataclasses.replace(POINTS_RUN.model, ignore_step=True, max_guidance=4.0)
    begun, source = init_from(fresh_state(shape), points_run).ema, odelt.load(points_run)
    t, x, told = jax.numpy.zeros(2), jax.numpy.ones((2, 2)), odelt.Guidance(3.0, 0.1, 0.6)
    expected = source(t, x, 0, [0, 1])
    np.testing.assert_allclose(begun(t, x, 0, [0, 1], guidance=told), expected, rtol=1e-6)
    hidden = begun.condition_embedding.guidance.weight.hidden.weight
    assert np.abs(hidden).max() > 0.01  # zero on both sides would have no gradient


def test_frozen_parts_keep_the_average_they_began_with(points_run, tmp_path):
    """Also when the run is resumed, and when a batch is trained in parts."""
    config = dataclasses.replace(POINTS_RUN, init_from=str(points_run), steps=2, save_every=1)
    config = dataclasses.replace(config, frozen=("groups", "condition_embedding"))
    once = train(config, tmp_path / "once")
    source = odelt.load(points_run)
    for network in (once.model, once.ema):
        assert_same(network.groups, source.groups)
        assert_same(network.condition_embedding, source.condition_embedding)
        assert not np.array_equal(network.final.out.weight, source.final.out.weight)
    shutil.copytree(tmp_path / "once", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "2")
    assert_same(once, train(config, tmp_path / "cut", resume=True))
    parts = train(dataclasses.replace(config, accumulate=2), tmp_path / "parts")
    assert_same(parts.model.groups, source.groups)
    with pytest.raises(odelt.InputError, match="did you mean groups"):
        train(dataclasses.replace(config, frozen=("group",)), tmp_path / "unknown")
    with pytest.raises(odelt.InputError, match="frozen would keep random weights of groups"):
        dataclasses.replace(POINTS_RUN, frozen=("groups",))


def test_a_run_begins_from_safetensors_and_from_other_groups(run, tmp_path):
    path = tmp_path / "weights.safetensors"
    convert(run, path, SMALL)
    regrouped = dataclasses.replace(SMALL.model, depth_group=3, depth_min=3)
    begun = init_from(fresh_state(regrouped), path)
    assert begun.model.config == regrouped
    assert_same(begun.ema, odelt.load(run, "ema"))


def test_a_depth_may_be_exported_as_a_run_of_its_own(run, tmp_path):
    convert(run, tmp_path / "short", SMALL, depth=2)
    short, whole = odelt.load(tmp_path / "short"), odelt.load(run)
    assert (short.config.depth, len(short.blocks)) == (2, 2)
    noise, labels = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), np.array([1, 2])
    images = (odelt.sample(m, noise, jax.numpy.asarray(labels), depth=2) for m in (short, whole))
    np.testing.assert_array_equal(*images)


def test_weights_of_another_network_are_refused(run):
    def begin(**changes):
        init_from(fresh_state(dataclasses.replace(SMALL.model, **changes)), run)

    with pytest.raises(odelt.InputError, match=r"has patch_embedding\.weight of shape \(16, 4\)"):
        begin(hidden_size=32)
    others = {"logit_scale": "inverse-sqrt", "norm": "rms", "rope": True, "mlp": "swiglu"}
    for field, value in {**others, "qk_norm": True, "num_heads": 4}.items():
        with pytest.raises(odelt.InputError, match=f"has {field} .*, this network {value}: make"):
            begin(**{field: value})
    with pytest.raises(odelt.InputError, match="has patch_size 2, this network 1: make"):
        begin(patch_size=1, channels=4)
    with pytest.raises(odelt.InputError, match="holds a DiT, this network is a VectorNet"):
        init_from(fresh_state(POINTS_RUN.model), run)
    with pytest.raises(odelt.InputError, match="has depth 3, this network has 4"):
        begin(depth=4)
    with pytest.raises(
        odelt.InputError, match=r"left over: condition_embedding\.condition\.weight"
    ):
        init_from(fresh_state(dataclasses.replace(SMALL.model, num_classes=None)), run)


def test_nothing_is_overwritten_and_nothing_unknown_is_read(run, tmp_path):
    with pytest.raises(odelt.InputError, match="exists; choose another path"):
        convert(CHECKPOINT, run, SMALL)
    with pytest.raises(odelt.InputError, match="there is no file"):
        convert(tmp_path / "nothing.pkl", tmp_path / "run", SMALL)
    assert not (tmp_path / "run").exists()
    config = dataclasses.replace(TINY_RUN, init_from=str(CHECKPOINT))
    with pytest.raises(odelt.InputError, match="is neither a run folder nor a"):
        train(config, tmp_path / "run")


def test_a_run_made_of_a_run_knows_its_classes(tmp_path):
    network = POINTS_RUN.model.build(key=jax.random.key(7))
    odelt.save_safetensors(network, tmp_path / "network.safetensors")
    convert(tmp_path / "network.safetensors", tmp_path / "run", POINTS_RUN)
    assert load_contents(tmp_path / "run") is None
    contents = {"class_names": ["left", "right"], "count": 3, "fingerprint": ""}
    (tmp_path / "run" / CONTENTS).write_text(json.dumps(contents))
    convert(tmp_path / "run", tmp_path / "again", POINTS_RUN)
    assert load_contents(tmp_path / "again").class_names == ("left", "right")
    (tmp_path / "file").touch()
    with pytest.raises(odelt.InputError, match="run cannot be written: "):
        convert(tmp_path / "run", tmp_path / "file" / "run", POINTS_RUN)


def test_what_would_be_ignored_is_refused(run, tmp_path):
    with pytest.raises(odelt.InputError, match="sit is that of a local file, not of hub"):
        convert(run, Path("hub:a/b.safetensors"), SMALL, layout="sit")
    for source in (run, "hub:a/b"):
        with pytest.raises(odelt.InputError, match="is no file of another package: leave out form"):
            read_weights(source, SMALL, "sit")


def test_a_network_is_not_converted_for_data_or_a_training_of_others(tmp_path, capsys):
    """The training types that a message names are those that the command takes."""
    path, run = tmp_path / "network.safetensors", tmp_path / "run"

    def save(shape):
        odelt.save_safetensors(shape.build(key=jax.random.key(0)), path)

    save(POINTS_RUN.model)
    with pytest.raises(odelt.InputError, match=r"shape \(2,\), and .* \(8, 8, 1\): name .* moons"):
        convert(path, run, SMALL)
    digits = preset("digits")
    told = dataclasses.replace(SMALL.model, image_size=4)
    flow = dataclasses.replace(told, ignore_step=True)
    for shape, types in (
        (told, "length-consistency"),
        (dataclasses.replace(flow, length_embedding="none"), "naive"),
        (flow, "length-consistency naive"),
    ):
        save(shape)
        with pytest.raises(odelt.InputError, match=f"behind the preset, such as {types}$"):
            convert(path, run, digits)
    command.run(["digits", *types.split(), str(path), str(run)])
    assert run_config(run).model.ignore_step
    assert odelt.load(run).config == run_config(run).model
    assert "samples of shape (4, 4, 1), the data of this config are of shape (8, 8, 1)" in (
        capsys.readouterr().err
    )
