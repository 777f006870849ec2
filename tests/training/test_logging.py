"""Logging: what each service receives, and that it changes nothing of the run."""

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
from odelt_eqx.config import LoggingConfig, load_config
from odelt_eqx.images import sheet
from odelt_eqx.training.logging import log_previews, open_loggers, plot_vectors, read_metrics
from odelt_eqx.training.train import train
from tests.conftest import TINY_RUN
from tests.training.conftest import POINTS_RUN

IMAGE = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def test_the_folder_holds_metrics_and_images(tmp_path):
    with open_loggers(LoggingConfig(), tmp_path, 0, {}) as log:
        log.write(2, loss=0.1234567)
        log.write_image(2, "depth-4", IMAGE)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 2, "loss": 0.123457}
    read = imread(tmp_path / "previews" / "depth-4" / "0000002.png")
    np.testing.assert_array_equal(np.round(255 * read[..., :3]), IMAGE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "previews"]


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
    config = LoggingConfig(to=("tensorboard",))
    with open_loggers(config, tmp_path, 0, {}) as log:
        log.write(2, loss=0.5, grad_norm=3.0)
        log.write_image(2, "depth-4", IMAGE)
    with open_loggers(config, tmp_path, 2, {}) as log:
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
        with open_loggers(LoggingConfig(to=("wandb",)), tmp_path, done, {"steps": 6}) as log:
            log.write(done + 1, loss=0.5)
            log.write_image(done + 1, "depth-4", IMAGE)
    wandb.teardown()  # its own process writes on after a run has finished; this waits for its end
    name = (tmp_path / "wandb-id.txt").read_text()
    records = list((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert records
    for record in records:
        data = record.read_bytes()
        assert b"loss" in data
        assert b"samples/depth-4" in data
    for image in (tmp_path / "wandb").rglob("*.png"):
        np.testing.assert_array_equal(np.round(255 * imread(image)[..., :3]), IMAGE)
    assert list((tmp_path / "wandb").rglob("*.png"))


def test_weights_and_biases_refusing_is_one_line(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    message = "configured. Use `wandb login` to log in. Or set WANDB_MODE=offline"
    with (
        pytest.raises(odelt.InputError, match=message),
        open_loggers(LoggingConfig(to=("wandb",)), tmp_path, 0, {}),
    ):
        pass


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_extra_is_one_line_before_anything_is_made(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    config = dataclasses.replace(TINY_RUN, logging=LoggingConfig(to=(name,)))
    with pytest.raises(odelt.InputError, match=rf"pip install 'odelt-eqx\[{name}\]'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_extras_are_imported_only_where_they_are_used():
    for path in Path(odelt.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not {"tensorboardX", "wandb"} & set(ast.unparse(node).split()), path


PREVIEWS = LoggingConfig(
    to=("tensorboard",), sample_every=3, sample_steps=(1, 2), sample_depths=(2,), sample_count=3
)


@pytest.fixture(scope="module")
def logged_run(tmp_path_factory):
    """The run of `points_run`, with previews."""
    run = tmp_path_factory.mktemp("runs") / "logged"
    train(dataclasses.replace(POINTS_RUN, logging=PREVIEWS), run)
    return run


def read_image(path):
    return np.round(255 * imread(path)[..., :3])


@pytest.mark.thorough
def test_previews_are_samples_of_the_ema_at_the_steps_and_depths_asked_for(logged_run):
    found = sorted(str(p.relative_to(logged_run)) for p in logged_run.glob("previews/*/*"))
    expected = [f"previews/depth-2-steps-{t}/000000{s}.png" for t in (1, 2) for s in (3, 6)]
    assert found == expected
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    points = odelt.sample(
        odelt.load(logged_run), noise, jnp.arange(3) % 2, time=odelt.FixedSteps(2), depth=2
    )
    image = sheet(plot_vectors(np.asarray(points)), 1)
    np.testing.assert_array_equal(read_image(logged_run / expected[-1]), image)


def test_previews_of_images_are_guided_as_the_run_samples(model, tmp_path):
    guided = odelt.SampleConfig(guidance=1.5)
    config = dataclasses.replace(TINY_RUN, logging=PREVIEWS, sample=guided)
    with open_loggers(LoggingConfig(), tmp_path, 0, {}) as log:
        log_previews(log, config, 3, model)
    noise = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    time = odelt.FixedSteps(2)
    images = odelt.sample(model, noise, jnp.arange(3), time=time, depth=2, guidance=1.5)
    image = read_image(tmp_path / "previews" / "depth-2-steps-2" / "0000003.png")
    np.testing.assert_array_equal(image, sheet(np.asarray(images), 3))


def test_previews_no_deeper_than_the_guide_have_none(model, tmp_path):
    guided = odelt.SampleConfig(depth_guidance=1.0, guide_depth=2)
    config = dataclasses.replace(TINY_RUN, logging=PREVIEWS, sample=guided)
    config = dataclasses.replace(config, logging=dataclasses.replace(PREVIEWS, sample_depths=()))
    with open_loggers(LoggingConfig(), tmp_path, 0, {}) as log:
        log_previews(log, config, 3, model)
    noise = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    for depth, weight in ((2, 0.0), (4, 1.0)):
        options = {"time": odelt.FixedSteps(2), "depth": depth, "depth_guidance": weight}
        images = odelt.sample(model, noise, jnp.arange(3), **options)
        image = read_image(tmp_path / "previews" / f"depth-{depth}-steps-2" / "0000003.png")
        np.testing.assert_array_equal(image, sheet(np.asarray(images), 3))


def test_previews_whose_solve_fails_do_not_stop_the_run(model, tmp_path, capsys):
    hurried = odelt.SampleConfig(length=odelt.Adaptive(rtol=1e-6, atol=1e-6, max_steps=1))
    config = dataclasses.replace(TINY_RUN, logging=PREVIEWS, sample=hurried)
    with open_loggers(LoggingConfig(), tmp_path, 0, {}) as log:
        log_previews(log, config, 3, model)
    assert "note: no preview at depth 2: the length axis needed more" in capsys.readouterr().err
    assert not (tmp_path / "previews").exists()


def test_a_plot_has_a_dot_for_each_vector_within_its_range():
    image = plot_vectors(np.array([[-2.99, 2.99], [2.99, -2.99], [0.0, 9.0]], np.float32))
    dots = np.argwhere(image[0, :, :, 0] < 0).tolist()
    side = image.shape[1]
    assert dots == [[0, 0], [side - 1, side - 1]]
    assert (plot_vectors(np.zeros((1, 1), np.float32)) < 0).sum() == 1


def test_logging_changes_nothing_of_the_run(logged_run, points_run):
    for ours, theirs in zip(
        *(jax.tree.leaves(odelt.load(run)) for run in (logged_run, points_run)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_may_be_resumed_with_other_logging(points_run, tmp_path):
    """A service that is down must not keep a run from being resumed."""
    run = shutil.copytree(points_run, tmp_path / "run")
    changed = dataclasses.replace(POINTS_RUN, logging=LoggingConfig(to=("tensorboard",)))
    train(changed, run, resume=True)
    assert (run / "tensorboard").is_dir()
    assert (run / "metrics.jsonl").read_text() == (points_run / "metrics.jsonl").read_text()


def test_the_logging_config_survives_its_file_and_is_checked(logged_run):
    assert load_config(logged_run / "config.json").logging.sample_steps == (1, 2)
    with pytest.raises(odelt.InputError, match="depth must be one of 2, 4"):
        dataclasses.replace(TINY_RUN, logging=LoggingConfig(sample_depths=(3,)))
    for field, value in (("sample_every", -1), ("sample_steps", (0,)), ("peak_flops", 0.0)):
        with pytest.raises(odelt.InputError, match=field):
            LoggingConfig(**{field: value})


def test_metrics_of_any_length_are_read_and_go_on(tmp_path, monkeypatch):
    """A run of weeks may log more than any other text file may hold."""
    monkeypatch.setattr("odelt_eqx.files.MAX_TEXT", 100)
    lines = [f'{{"step": {step}, "loss": 0.5}}\n' for step in range(1, 40)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + "x" * 1030 + "\n")
    damaged = pytest.warns(UserWarning, match="damaged lines are skipped, 1 of 40")
    with damaged, open_loggers(LoggingConfig(), tmp_path, 30, {}) as log:
        log.write(31, loss=0.25)
    assert [row["step"] for row in read_metrics(tmp_path)] == [*range(1, 32)]
