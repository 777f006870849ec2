"""Who follows a run sees its figures and pictures, and changes nothing of it."""

import ast
import dataclasses
import json
import shutil
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import odelt_eqx as odelt
from odelt_eqx.config import load_config
from odelt_eqx.images import sheet
from odelt_eqx.training.loop import train
from odelt_eqx.watching import WatchConfig, watching
from tests.conftest import TINY_RUN

IMAGE = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def test_the_folder_holds_figures_and_pictures_whole(tmp_path):
    with watching(WatchConfig(), tmp_path, 0, {}) as log:
        log.write(2, loss=0.1234567)
        log.picture(2, "depth-4", IMAGE)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 2, "loss": 0.123457}
    read = imread(tmp_path / "pictures" / "depth-4" / "0000002.png")
    np.testing.assert_array_equal(np.round(255 * read[..., :3]), IMAGE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "pictures"]


def events(folder: Path):
    """What the event files of a folder hold, oldest first (TFRecord: length, sum, data, sum)."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_gets_them_too_and_forgets_what_comes_again(tmp_path):
    config = WatchConfig(to=("tensorboard",))
    with watching(config, tmp_path, 0, {}) as log:
        log.write(2, loss=0.5, grad_norm=3.0)
        log.picture(2, "depth-4", IMAGE)
    with watching(config, tmp_path, 2, {}) as log:
        log.write(3, loss=0.25)
    found = list(events(tmp_path / "tensorboard"))
    values = [(event.step, value) for event in found for value in event.summary.value]
    scalars = {(step, v.tag): v.simple_value for step, v in values if not v.HasField("image")}
    assert scalars == {(2, "loss"): 0.5, (2, "grad_norm"): 3.0, (3, "loss"): 0.25}
    (image,) = [(step, v.tag, v.image) for step, v in values if v.HasField("image")]
    assert image[:2] == (2, "samples/depth-4")
    assert (image[2].height, image[2].width, image[2].colorspace) == (5, 4, 3)
    starts = [event.step for event in found if event.session_log.status == 1]
    assert starts == [1, 3]


def test_weights_and_biases_gets_them_too_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    for done in (0, 2):
        with watching(WatchConfig(to=("wandb",)), tmp_path, done, {"steps": 6}) as log:
            log.write(done + 1, loss=0.5)
            log.picture(done + 1, "depth-4", IMAGE)
    wandb.teardown()  # its own process writes on after a run has finished; this waits for its end
    name = (tmp_path / "wandb-id.txt").read_text()
    records = list((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert records
    for record in records:
        data = record.read_bytes()
        assert b"loss" in data
        assert b"samples/depth-4" in data
    for picture in (tmp_path / "wandb").rglob("*.png"):
        np.testing.assert_array_equal(np.round(255 * imread(picture)[..., :3]), IMAGE)
    assert list((tmp_path / "wandb").rglob("*.png"))


def test_weights_and_biases_refusing_is_one_line(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    message = "configured. Use `wandb login` to log in. Or set WANDB_MODE=offline"
    with (
        pytest.raises(odelt.InputError, match=message),
        watching(WatchConfig(to=("wandb",)), tmp_path, 0, {}),
    ):
        pass


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_extra_is_one_line_before_anything_is_made(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    config = dataclasses.replace(TINY_RUN, watch=WatchConfig(to=(name,)))
    with pytest.raises(odelt.InputError, match=rf"pip install 'odelt-eqx\[{name}\]'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_extras_are_imported_only_where_they_are_used():
    for path in Path(odelt.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not {"tensorboardX", "wandb"} & set(ast.unparse(node).split()), path


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory):
    """The run of `tiny_run`, with pictures."""
    run = tmp_path_factory.mktemp("runs") / "watched"
    watch = WatchConfig(
        to=("tensorboard",), sample_every=3, sample_steps=(1, 2), sample_depths=(2,), sample_count=3
    )
    train(dataclasses.replace(TINY_RUN, watch=watch), run)
    return run


def test_pictures_show_the_averaged_weights_at_the_steps_and_depths_asked_for(watched_run):
    found = sorted(str(p.relative_to(watched_run)) for p in watched_run.glob("pictures/*/*"))
    expected = [f"pictures/depth-2-steps-{t}/000000{s}.png" for t in (1, 2) for s in (3, 6)]
    assert found == expected
    noise = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    time = odelt.FixedSteps(2)
    images = odelt.sample(odelt.load(watched_run), noise, jnp.arange(3), time=time, depth=2)
    drawn = np.round(255 * imread(watched_run / expected[-1])[..., :3])
    np.testing.assert_array_equal(drawn, sheet(np.asarray(images), 3))


def test_watching_changes_nothing_of_the_run(watched_run, tiny_run):
    for ours, theirs in zip(
        *(jax.tree.leaves(odelt.load(run)) for run in (watched_run, tiny_run)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_may_be_resumed_and_watched_otherwise(tiny_run, tmp_path):
    """A service that is out of order must not keep a run from going on."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    watched = dataclasses.replace(TINY_RUN, watch=WatchConfig(to=("tensorboard",)))
    train(watched, run, resume=True)
    assert (run / "tensorboard").is_dir()
    assert (run / "metrics.jsonl").read_text() == (tiny_run / "metrics.jsonl").read_text()


def test_what_is_watched_survives_its_file_and_is_checked(watched_run):
    assert load_config(watched_run / "config.json").watch.sample_steps == (1, 2)
    with pytest.raises(odelt.InputError, match="depth must be one of 2, 4"):
        dataclasses.replace(TINY_RUN, watch=WatchConfig(sample_depths=(3,)))
    for field, value in (("sample_every", -1), ("sample_steps", (0,)), ("peak_flops", 0.0)):
        with pytest.raises(odelt.InputError, match=field):
            WatchConfig(**{field: value})
