"""A run folder: resumed bit-for-bit, never overwritten unless asked, loaded by name."""

import dataclasses
import json
import shutil
from contextlib import nullcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig, load_config, save_config
from odelt_eqx.data import Folder, HeldOut, Npz
from odelt_eqx.interop import PublishedShortcut
from odelt_eqx.objective import (
    TRAIN_TYPES,
    Consistency,
    DeepSupervision,
    FlowMatching,
    LengthConsistency,
    LiveReflow,
    MeanFlow,
    Networks,
    Progressive,
    SelfAlignment,
    Shortcut,
    TrainingTime,
)
from odelt_eqx.presets import of_type, preset
from odelt_eqx.progress import Progress
from odelt_eqx.training.info import describe
from odelt_eqx.training.run_folder import check_run_folder, open_run, start_run
from odelt_eqx.training.step import init_state
from odelt_eqx.training.train import train
from odelt_eqx.training.weights import init_from
from tests.conftest import TINY_RUN
from tests.data.makers import write_images
from tests.training.conftest import POINTS_RUN

MEASURED = {"step_seconds", "examples_per_second", "process_peak_resident_bytes"}
"""Metrics that differ between any two runs."""
ALIGNED = dataclasses.replace(POINTS_RUN.model, length_embedding="edge", projector=True)
"""A network whose hidden states can be aligned."""


class PowerCutError(Exception):
    """The machine loses power."""


def cut_power_after(step, monkeypatch):
    """Make training die once `step` is done."""

    class Dying(Progress):
        def advance(self, count=1):
            super().advance(count)
            if self._done == step:
                raise PowerCutError

    monkeypatch.setattr("odelt_eqx.training.train.Progress", Dying)


def test_a_resumed_run_ends_with_the_same_bits(tiny_run, tmp_path, monkeypatch):
    run = tmp_path / "cut"
    with monkeypatch.context() as patch:
        cut_power_after(5, patch)
        with pytest.raises(PowerCutError):
            train(TINY_RUN, run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir() if p.is_dir()) == ["3"]
    train(TINY_RUN, run, resume=True)
    for ours, theirs in zip(
        jax.tree.leaves(odelt.load(run)), jax.tree.leaves(odelt.load(tiny_run)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    lines, expected = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tiny_run)
    )
    timeless = lambda rows: [
        {name: value for name, value in row.items() if name not in MEASURED} for row in rows
    ]
    assert timeless(lines) == timeless(expected)


def test_another_run_of_a_kind_compiles_nothing(tmp_path, monkeypatch):
    config = dataclasses.replace(POINTS_RUN, objective=FlowMatching(), steps=2)
    train(config, tmp_path / "first")
    monkeypatch.setattr(FlowMatching, "targets", None)  # is called where it is traced
    state = train(dataclasses.replace(config, seed=1, log_every=1), tmp_path / "other")
    assert int(state.step) == 2


def test_a_config_may_hold_lists(any_types):
    """Though the training step of a run is found again by them, see above."""
    frozen = dataclasses.replace(POINTS_RUN, init_from="a run", frozen=["final"]).frozen
    hash((frozen, OptimizerConfig(average_widths=[0.1]), DeepSupervision(weights=[1.0, 2.0])))


def train_whole_and_cut(config, folder, monkeypatch):
    """Train for two steps in one folder, and in another until the power is cut after the first."""
    whole = train(config, folder / "whole")
    with monkeypatch.context() as patch:
        cut_power_after(2, patch)
        with pytest.raises(PowerCutError):
            train(config, folder / "cut")
    return whole


@pytest.mark.thorough
def test_a_run_of_the_newer_blocks_resumes_with_the_same_bits(tmp_path, monkeypatch):
    block = {"qk_norm": True, "norm": "scaled-rms", "rope": True, "mlp": "swiglu"}
    block |= {"modulation": "shared", "logit_scale": "inverse-sqrt", "dtype": "bfloat16"}
    model = dataclasses.replace(TINY_RUN.model, length_embedding="none", stacked=True, **block)
    config = dataclasses.replace(TINY_RUN, model=model, objective=FlowMatching(), steps=2)
    config = dataclasses.replace(config, save_every=1, eval_every=10)
    train_whole_and_cut(config, tmp_path, monkeypatch)
    other = dataclasses.replace(config, model=dataclasses.replace(model, attention="xla"))
    train(other, tmp_path / "cut", resume=True)
    ours, theirs = (jax.tree.leaves(odelt.load(tmp_path / run)) for run in ("cut", "whole"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
def test_a_run_that_learns_guidance_resumes_with_the_same_bits(tmp_path, monkeypatch):
    objective = LengthConsistency(MeanFlow(tangent="network", max_guidance=4.0))
    model = dataclasses.replace(POINTS_RUN.model, ignore_step=False, dropout=0.0)
    config = dataclasses.replace(POINTS_RUN, model=model, objective=objective, steps=2)
    config = dataclasses.replace(config, save_every=1, eval_every=10)
    whole = train_whole_and_cut(config, tmp_path, monkeypatch)
    cut = train(config, tmp_path / "cut", resume=True)
    for ours, theirs in zip(*map(jax.tree.leaves, (cut, whole)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert odelt.load(tmp_path / "cut").condition_type.max_guidance == 4
    with pytest.raises(odelt.InputError, match=r"max_guidance is 3\.0, but this objective teaches"):
        dataclasses.replace(config, model=dataclasses.replace(config.model, max_guidance=3.0))
    with pytest.raises(odelt.InputError, match="max_guidance is for networks that learn a condit"):
        dataclasses.replace(config.model, num_classes=None)


@pytest.mark.thorough
def test_a_network_that_is_told_its_guidance_is_sampled_with_it(tmp_path):
    config = dataclasses.replace(POINTS_RUN.model, max_guidance=4.0, ignore_step=False)
    fresh = config.build(key=jax.random.key(0))
    final = jax.random.normal(jax.random.key(1), fresh.final.out.weight.shape)
    network = eqx.tree_at(lambda net: net.final.out.weight, fresh, final)
    noise = jnp.ones((2, 2))
    told = odelt.sample(network, noise, [0, 1], guidance=4.0)
    assert not np.array_equal(told, odelt.sample(network, noise, [0, 1]))
    odelt.save_safetensors(network, tmp_path / "told.safetensors")
    again = odelt.load_safetensors(tmp_path / "told.safetensors")
    np.testing.assert_array_equal(odelt.sample(again, noise, [0, 1], guidance=4.0), told)


@pytest.mark.thorough
def test_a_run_that_aligns_hidden_states_resumes_with_the_same_bits(tmp_path, monkeypatch):
    objective = SelfAlignment(DeepSupervision(POINTS_RUN.objective))
    config = dataclasses.replace(POINTS_RUN, model=ALIGNED, objective=objective, steps=2)
    config = dataclasses.replace(config, log_every=1, save_every=1, eval_every=10)
    whole = train_whole_and_cut(config, tmp_path, monkeypatch)
    cut = train(config, tmp_path / "cut", resume=True)
    for ours, theirs in zip(*map(jax.tree.leaves, (cut, whole)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("alignment", 0) > 0] == [1, 2]
    assert odelt.load(tmp_path / "cut").projector is not None


@pytest.mark.thorough
def test_a_run_begins_from_weights_with_an_alignment_head_or_without(tmp_path):
    trained = ALIGNED.build(key=jax.random.key(0))
    odelt.save_safetensors(trained, tmp_path / "head.safetensors")
    headless = dataclasses.replace(ALIGNED, projector=False)
    for shape, head in ((ALIGNED, trained.projector), (headless, None)):
        state = init_state(shape.build(key=jax.random.key(1)), optax.sgd(1.0))
        begun = init_from(state, tmp_path / "head.safetensors").ema
        assert begun.config == shape
        for a, b in zip(*map(jax.tree.leaves, (begun.projector, head)), strict=True):
            np.testing.assert_array_equal(a, b)
    fresh = init_state(ALIGNED.build(key=jax.random.key(1)), optax.sgd(1.0))
    odelt.save_safetensors(begun, tmp_path / "headless.safetensors")
    whole = init_from(fresh, tmp_path / "headless.safetensors").ema
    for a, b in zip(*map(jax.tree.leaves, (whole.projector, fresh.model.projector)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (whole.groups, trained.groups)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_mean_flow_takes_its_forward_derivative_through_the_logits():
    config = of_type(preset("imagenet-b"), "mean-flow")
    assert config.model.attention == "xla"
    forced = dataclasses.replace(config.model, attention="cudnn", dtype="bfloat16")
    with pytest.raises(odelt.InputError, match=r"forward derivative: give --model\.attention xla"):
        dataclasses.replace(config, model=forced)


def test_a_run_is_read_back_with_its_config(tiny_run):
    model = odelt.load(tiny_run)
    assert model.config == TINY_RUN.model
    assert load_config(tiny_run / "config.json") == TINY_RUN


def test_the_held_out_loss_is_of_data_that_training_never_sees(tmp_path, monkeypatch):
    seen = []

    def record(state, objective, x, condition, key, steps):
        seen.append(np.asarray(x))
        return jax.numpy.zeros(())

    monkeypatch.setattr("odelt_eqx.training.train.held_out_loss", record)
    train(POINTS_RUN, tmp_path / "run")
    points = {point.tobytes() for point in seen[0]}
    assert len(points) == 20
    assert not points & {point.tobytes() for point in POINTS_RUN.data.open("train").x}


def test_metrics_hold_the_losses_the_rate_and_the_speed(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    assert [row["step"] for row in rows if "held_out_loss" in row] == [3, 6]
    assert {"grad_norm", "learning_rate"} | MEASURED <= rows[0].keys()


def test_a_run_is_described_from_its_folder(points_run):
    """Sizes by depth, checkpoints, metrics and options; the first depth has one of two blocks."""
    text = describe(points_run)
    sizes = [line.split() for line in text.splitlines()[1:4]]
    assert [depth for depth, *_ in sizes] == ["1", "2", "plain"]
    flops = [int(flops.replace(",", "")) for *_, flops in sizes]
    assert flops[0] < flops[1] == flops[2]
    assert "\n3           20" in text
    for line in ("step_seconds", "held_out_loss", "model.type", "logging.sample_steps"):
        assert f"\n{line} " in text


def test_an_existing_run_is_never_touched_unasked(tiny_run):
    with pytest.raises(odelt.InputError, match="exists; use --resume to continue it"):
        train(TINY_RUN, tiny_run)


def test_only_a_run_is_ever_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(odelt.InputError, match="is not a run folder"):
        train(TINY_RUN, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_what_is_not_of_a_run_stays_when_it_is_overwritten(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    written = {path.name for path in run.iterdir()} - {"config.json", ".lock"}
    shutil.copytree(tiny_run, run / "fine-tuned")
    (run / "notes.txt").write_text("years of work")
    for name in ("grid.json", "samples.npz", ".grid.partial.png", "samples.md", "grid.py"):
        (run / name).write_text("old")
    start_run(TINY_RUN, run)
    left = {path.name for path in run.iterdir()}
    assert left == {"config.json", ".lock", "fine-tuned", "notes.txt", "samples.md", "grid.py"}
    assert written >= {"checkpoints", "data.json", "metrics.jsonl"}
    odelt.load(run / "fine-tuned")


def test_a_run_among_the_images_of_its_data_is_refused(tmp_path):
    """What it draws would be read as images, unless it is hidden or the images are in Parquet."""
    images, inside = write_images(tmp_path / "images", count=20), tmp_path / "images" / "run"
    data = Folder(images, 8, 1, held_out=HeldOut(0.3))
    with pytest.raises(odelt.InputError, match=r"run lies in .*images.*choose a folder elsewhere"):
        train(dataclasses.replace(TINY_RUN, data=data), inside)
    assert not inside.exists()
    data.check_outside(images / ".odelt" / "run")
    data.check_outside(tmp_path / "run")
    (images / "train.parquet").touch()
    data.check_outside(inside)


def test_there_must_be_something_to_resume(tiny_run, tmp_path):
    with pytest.raises(odelt.InputError, match=r"is not a run folder: it has no config\.json"):
        train(TINY_RUN, tmp_path, resume=True)
    shutil.copy(tiny_run / "config.json", tmp_path)
    with pytest.raises(odelt.InputError, match="has no checkpoint to resume"):
        train(TINY_RUN, tmp_path, resume=True)
    with pytest.raises(odelt.InputError, match="has no checkpoint yet"):
        odelt.load(tmp_path)


def test_a_run_is_resumed_with_its_own_config_only(tiny_run):
    other = dataclasses.replace(TINY_RUN, steps=5)
    with pytest.raises(odelt.InputError, match=r"another config: steps is 5, was 6$"):
        train(other, tiny_run, resume=True)


@pytest.mark.thorough
def test_a_run_may_go_on_for_longer_and_be_saved_otherwise(points_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(points_run, run)
    optimizer = dataclasses.replace(POINTS_RUN.optimizer, max_skipped=3)
    often = {"save_every": 1, "log_every": 1, "eval_every": 4, "keep": 3, "accumulate": 2}
    state = train(
        dataclasses.replace(POINTS_RUN, steps=20, optimizer=optimizer, **often), run, resume=True
    )
    assert int(state.step) == 20
    assert "note: the run now has 20 steps, it had 6" in capsys.readouterr().err
    saved = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"18", "19", "20"} <= saved
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    assert rates[20] < rates[18] == POINTS_RUN.optimizer.learning_rate


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (FlowMatching(), {"steps": 20}, None),
        (Consistency(), {"steps": 20}, "another config: steps is 20, was 6$"),
        (DeepSupervision(Consistency()), {"steps": 20}, "steps is 20, was 6$"),
        (Progressive(), {"steps": 20}, "steps is 20, was 6$"),
        (FlowMatching(), {"accumulate": 2}, None),
    ],
    ids=str,
)
def test_what_decides_the_weights_stays_when_a_run_goes_on(tmp_path, objective, changes, message):
    """The number of steps does where there are stages."""
    begun = dataclasses.replace(POINTS_RUN, model=ALIGNED, objective=objective)
    save_config(begun, tmp_path / "config.json")
    (tmp_path / "checkpoints" / "3" / "optimizer").mkdir(parents=True)
    refused = nullcontext() if message is None else pytest.raises(odelt.InputError, match=message)
    with refused:
        check_run_folder(dataclasses.replace(begun, **changes), tmp_path, True, False)


def test_a_run_that_another_process_has_trained_since_the_check_is_kept(points_run, tmp_path):
    run = shutil.copytree(points_run, tmp_path / "run")
    contents = POINTS_RUN.data.open("train").contents
    with (
        pytest.raises(odelt.InputError, match="exists; use --resume to continue it"),
        open_run(POINTS_RUN, run, resume=False, overwrite=False, contents=contents),
    ):
        pass
    assert (run / "checkpoints" / "6").is_dir()


TYPES = TRAIN_TYPES.values()
CHANGED = [FlowMatching(0.2), Shortcut(8, 1.5), LengthConsistency(teacher_depth="deeper")]
CHANGED += [DeepSupervision(Shortcut(), (1.0, 2.0, 3.0), 0.5, "average")]
CHANGED += [SelfAlignment(MeanFlow(), 0.3, 0.1, 2, 6), SelfAlignment(CHANGED[-1])]


@pytest.mark.parametrize(
    "objective",
    [*CHANGED, *TYPES, *map(LengthConsistency, TYPES), *map(DeepSupervision, TYPES)],
)
def test_a_config_survives_its_file(tmp_path, objective):
    config = preset("digits")
    changes = {"length_embedding": "none", "wiring": "residual", "projector": True}
    model = dataclasses.replace(config.model, **changes)
    config = dataclasses.replace(config, objective=objective, model=model)
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:100], r"config\.json is not a config: "),
        (
            lambda text: text.replace('"steps"', '"stepz"'),
            r"config\.json does not fit this version: .*stepz",
        ),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path, damage, message):
    path = tmp_path / "config.json"
    save_config(preset("digits"), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(odelt.InputError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"class_names": ["upper", "lower", "side"]}, "'side' is gone"),
        ({"class_names": ["upper"]}, "'lower' is new"),
        ({"class_names": ["lower", "upper"]}, "their order differs"),
        ({"count": 7}, r"begun with other training examples, 7 of them, now 180: .*--init-from"),
        ({"fingerprint": "0"}, "180 of other names or labels"),
        ({"class_names": 3}, "does not fit this version"),
    ],
)
def test_a_run_is_not_resumed_with_other_data(points_run, tmp_path, known, message):
    run = tmp_path / "run"
    shutil.copytree(points_run, run)
    saved = json.loads((run / "data.json").read_text())
    assert saved["class_names"] == ["upper", "lower"]
    (run / "data.json").write_text(json.dumps(saved | known))
    contents = POINTS_RUN.data.open("train").contents
    with (
        pytest.raises(odelt.InputError, match=message),
        open_run(POINTS_RUN, run, resume=True, overwrite=False, contents=contents),
    ):
        pass


def test_what_a_run_reads_is_known_by_names_and_labels(tmp_path):
    """Not by where it is: a folder that was moved is the same."""
    write_images(tmp_path / "a", ("cat", "dog"), count=3)
    read = lambda name: Folder(tmp_path / name, 8, held_out=HeldOut(0.0)).open("train")
    contents = read("a").contents
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read("b").contents == contents
    (tmp_path / "b" / "cat" / "0.png").rename(tmp_path / "b" / "cat" / "other.png")
    assert read("b").contents.fingerprint != contents.fingerprint
    shutil.rmtree(tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "cat" / "0.png").rename(tmp_path / "b" / "dog" / "9.png")
    assert read("b").contents.fingerprint != contents.fingerprint


@pytest.mark.parametrize("name", TRAIN_TYPES)
def test_a_preset_may_be_trained_by_any_type(name):
    """At every depth, as the preset is, and with what it says of labels."""
    config = of_type(preset("celeba-b"), name)
    assert isinstance(config.objective, LengthConsistency)
    assert type(config.objective.objective) is type(TRAIN_TYPES[name])
    assert config.objective.objective.class_dropout == 1
    assert config.model.ignore_step != config.objective.trains_steps
    assert of_type(of_type(config, "rfm"), name).model == config.model
    deep = of_type(preset("digits"), name)
    assert isinstance(deep.objective, DeepSupervision)
    assert (deep.model.length_embedding, deep.sample.depth_guidance) == ("none", 0.5)
    told = of_type(deep, "length-consistency")
    assert (told.model.length_embedding, told.sample.depth_guidance) == ("depth", 0)
    alone = dataclasses.replace(preset("digits"), objective=FlowMatching(0.3))
    assert alone.sample.depth_guidance == 0
    objective = of_type(alone, name).objective
    assert objective == dataclasses.replace(TRAIN_TYPES[name], class_dropout=0.3)


def test_an_unknown_training_type_suggests_the_nearest():
    with pytest.raises(odelt.InputError, match="type is called 'meanflow'; did you mean mean-flow"):
        of_type(preset("digits"), "meanflow")


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(odelt.InputError, match="no preset is called 'digit'; did you mean digits"):
        preset("digit")


def test_images_of_another_shape_than_the_network_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((60, 8, 12, 1), np.uint8))
    config = dataclasses.replace(TINY_RUN, data=Npz(tmp_path / "a.npz"))
    with pytest.raises(odelt.InputError, match=r"shape \(8, 8, 1\), .* has \(8, 12, 1\)"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


LEARNED = [
    (preset("digits").objective, 10, "both"),
    (preset("celeba-b").objective, 10, "null"),
    (FlowMatching(class_dropout=1.0), 10, "null"),
    (LiveReflow(guidance=0.0), 10, "null"),
    (LengthConsistency(FlowMatching(), every=8), 1, "null"),
    (LengthConsistency(MeanFlow(class_dropout=0.0)), 10, "condition"),
    (PublishedShortcut(Shortcut(class_dropout=1.0)), 10, "null"),
]


@pytest.mark.parametrize(("objective", "classes", "learned"), LEARNED, ids=str)
def test_a_run_knows_which_conditions_it_learns(objective, classes, learned):
    start = preset("digits")
    model = dataclasses.replace(start.model, num_classes=classes)
    config = dataclasses.replace(start, model=model, objective=objective)
    assert config.model.learned == config.model.condition_type.learned == learned
    if learned != "both":
        with pytest.raises(odelt.InputError, match=r"has no guidance|guidance must be 1"):
            dataclasses.replace(config, sample=odelt.SampleConfig(guidance=1.5))
        with pytest.raises(odelt.InputError, match=f"learned is {learned}, but.*teaches both"):
            dataclasses.replace(start, model=dataclasses.replace(start.model, learned=learned))


def test_a_shortcut_cannot_be_guided_by_a_null_condition_that_nothing_trains():
    objective = Shortcut(every=2, guidance=1.5, class_dropout=0.0)
    shape = dataclasses.replace(POINTS_RUN.model, ignore_step=False)
    config = dataclasses.replace(POINTS_RUN, model=shape, objective=objective)
    network, labels = config.model.build(key=jax.random.key(0)), jnp.zeros(4, int)
    draws = objective.draw(jax.random.key(0), 4, network, TrainingTime(0, 1))
    with pytest.raises(odelt.InputError, match="never learned the null condition"):
        objective.targets(draws, jnp.zeros((4, 2)), labels, Networks.all(network))
