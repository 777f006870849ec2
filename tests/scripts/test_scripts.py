"""The commands as a user types them: results on success, one line and a status on mistakes."""

import html
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.objective import TRAIN_TYPES, FlowMatching
from odelt_eqx.training.load import run_config
from tests.conftest import GOLDEN, TINY
from tests.data.makers import write_images
from tests.scripts.conftest import SCRIPTS

pytestmark = pytest.mark.thorough

SHAPE = {"hidden-size": 16, "num-heads": 2, "depth": 2, "depth-min": 1, "depth-group": 1}
SMALL = tuple(word for name, value in SHAPE.items() for word in (f"--model.{name}", value))
SMALL += ("--steps", 1, "--no-evaluate")


def test_sample_with_an_adaptive_plan_on_each_axis(command, tiny_run, tmp_path):
    status, out, _ = command(
        *("sample.py", tiny_run, "--labels", 3, 7, "--count", 4, "--depth", 4),
        *("--out", tmp_path / "drawn", "time:adaptive", "--time.rtol", "1e-2"),
        *("length:fixed-steps", "--length.solver", "heun"),
    )
    assert status == 0
    assert "network evaluations per sample: " in out
    assert (tmp_path / "drawn.png").exists()
    assert (tmp_path / "drawn.npz").exists()


def recorded_command(folder):
    """The command that a report shows as its source, as a shell splits it."""
    text = html.unescape((folder / "report.html").read_text("utf-8"))
    return shlex.split(text.partition("# this page\n")[2].partition("\n")[0])


def test_evaluate_rebuilds_the_grid(command, tiny_run):
    (tiny_run / "grid.md").unlink(missing_ok=True)
    words = ("--steps", 1, "--depths", 2, "--count", 100, "--batch-size", 50)
    words += ("--solvers", "euler", "ab2", "--diffusion", 0, 1)
    status, out, _ = command("evaluate.py", tiny_run, *words)
    assert status == 0
    assert out.splitlines()[1] == str(tiny_run / "grid.md")
    rows = re.findall(r"\n\| 2 \| ([^|]*) \| 1 \|", (tiny_run / "grid.md").read_text())
    assert rows == ["euler", "ab2", "euler, diffusion 1"]
    words = [str(tiny_run), *map(str, words)]
    assert recorded_command(tiny_run) == ["python", str(SCRIPTS / "evaluate.py"), *words]
    typed = ["odelt", "evaluate", *words]
    assert command(*typed)[0] == 0
    assert recorded_command(tiny_run) == typed


def test_a_classifier_and_statistics_are_what_a_run_is_measured_by(command, tiny_run, tmp_path):
    classifier, statistics = tmp_path / "classifier", tmp_path / "stats.npz"
    status, out, _ = command("classifier.py", classifier, "--width", 4, "--steps", 20)
    assert status == 0
    assert "held-out accuracy: " in out
    seen = ("features:classifier", "--features.path", classifier)
    status, out, _ = command("stats.py", statistics, "--split", "held-out", *seen)
    assert status == 0
    assert out.startswith("360 examples, 128 features (classifier-")
    words = ("--steps", 1, "--depths", 2, "--count", 200, "--batch-size", 200)
    words += ("--out", tmp_path, "--guidance", 1, "--reference", statistics)
    assert command("evaluate.py", tiny_run, *words, *seen)[0] == 0
    grid = (tmp_path / "grid.md").read_text()
    assert "by the classifier" in grid
    assert "to given statistics" in grid
    status, _, errors = command("evaluate.py", tiny_run, *words)  # statistics of other features
    assert status == 2
    assert "feature mismatch: " in errors


def test_a_budget_chooses_what_was_measured(command, tiny_run, tmp_path):
    (tiny_run / "grid.json").unlink(missing_ok=True)
    status, _, errors = command("sample.py", tiny_run, "--budget-ms", 20)
    assert status == 2
    assert "there is no grid" in errors
    words = ("--steps", 1, 2, "--depths", 2, "--count", 100, "--batch-size", 50)
    assert command("evaluate.py", tiny_run, *words)[0] == 0
    words = ("--count", 2, "--out", tmp_path / "drawn", "--budget-ms")
    status, _, errors = command("sample.py", tiny_run, *words, 1e6)
    assert status == 0
    assert "note: depth 2, euler, " in errors
    status, _, errors = command("sample.py", tiny_run, *words, 1e-6)
    assert status == 2
    assert "is within this budget: the fastest takes" in errors
    status, _, errors = command("sample.py", tiny_run, *words, 1, "--depth", 2)
    assert status == 2
    assert "budget_ms chooses time, length, depth and guidance: leave them out" in errors


def test_convert_makes_a_run_that_samples_and_evaluates(command, tmp_path):
    shape = {"hidden-size": 16, "num-heads": 2, "depth": 3, "depth-min": 1, "depth-group": 1}
    words = [w for name, value in shape.items() for w in (f"--model.{name}", value)]
    source, run = GOLDEN / "small.reference.pkl", tmp_path / "run"
    refused = command("convert.py", "digits", source, run, *words)
    assert "networks of the reference have the length_embedding depth" in refused[2]
    words += ["--model.length-embedding", "depth", "objective:length-consistency"]
    assert "rope" in command("convert.py", "digits", source, run, *words)[2]
    words += ["--model.no-rope"]
    status, out, _ = command("convert.py", "digits", source, run, *words)
    assert (status, out.strip()) == (0, str(run))
    assert command("sample.py", run, "--depth", 2, "--count", 10)[0] == 0
    words = ("--steps", 1, "--depths", 1, "--count", 100, "--batch-size", 100)
    assert command("evaluate.py", run, *words)[0] == 0
    exported = tmp_path / "run.safetensors"
    assert command("convert.py", run, exported)[0] == 0
    assert exported.exists()


def test_sample_along_given_times(command, tiny_run, tmp_path):
    words = ("--count", 2, "--out", tmp_path / "s", "time:fixed-steps", "--time.times", 0, 0.5, 1)
    status, out, _ = command("sample.py", tiny_run, *words)
    assert status == 0
    assert out.splitlines()[:3] == [
        "time steps per sample: 2",
        "rejected steps per sample: 0",
        "network evaluations per sample: 2",
    ]


def test_info_tells_what_a_run_is_and_touches_nothing(command, tiny_run):
    seen = lambda: {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tiny_run.rglob("*")}
    before = seen()
    status, out, _ = command("info.py", tiny_run)
    assert status == 0
    assert seen() == before
    rows = [line.split() for line in out.splitlines()]
    network = odelt.load(tiny_run)
    for depth in (2, 4):
        count = sum(x.size for x in jax.tree.leaves(odelt.truncate(network, depth)))
        assert [str(depth), f"{count:,}", f"{velocity_flops(TINY, depth):,}"] in rows
    numbers = ["2", "4", "3", "6", "2"]  # depths, steps of checkpoints, a count of snapshots
    assert [row[0] for row in rows if row and row[0].isdigit()] == numbers
    figures = {row[0]: row[1:] for row in rows if len(row) == 3}
    last = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["held_out_loss"] == ["6", f"{last['held_out_loss']:g}"]
    assert ["model.hidden_size", "16"] in rows
    assert ["examples", "1,437", "360"] in rows


def test_prepare_makes_shards_that_train_reads(command, tmp_path):
    source, out = write_images(tmp_path / "images"), tmp_path / "out"
    words = ("--size", 8, "--workers", 1, "--held-out.share", 0.3)
    status, printed, _ = command("prepare.py", source, out, *words)
    assert (status, printed.split()) == (0, [str(out / "skipped.jsonl"), str(out / "index.json")])
    words = ("--model.num-classes", 5, "--run", "nowhere", "data:shards", "--data.folder", out)
    status, _, errors = command("train.py", *words)
    assert status == 2
    assert errors.startswith(
        "note: model.channels 3: as the data are\nerror: the network has 5 classes"
    )
    status, _, errors = command("train.py", *words[2:])
    assert "3 examples are held out, too few to measure this objective on" in errors
    assert "raise --data.held-out.share" in errors


def test_the_network_follows_the_data(command, tmp_path):
    folder, run = write_images(tmp_path / "images", count=20), tmp_path / "run"
    words = ("--batch-size", 8, "--run", run, "data:folder", "--data.folder", folder)
    words += ("--data.size", 24, "--data.held-out.share", 0.4)
    status, printed, errors = command("train.py", *SMALL, *words)
    shape = "model.channels 3, model.image_size 24, model.patch_size 3, model.num_classes 2"
    assert f"note: {shape}: as the data are\n" in errors
    assert (status, printed) == (0, f"{run}\n")
    assert run_config(run).model.shape == (24, 24, 3)


def test_one_command_trains_on_a_folder_of_images(command, tmp_path):
    """All that the images say is taken from them, and said before training."""
    folder, run = write_images(tmp_path / "images", ("cat", "dog"), 30, (24, 16)), tmp_path / "run"
    status, printed, errors = command(
        "train.py", "folder", "--data.folder", folder, "--run", run, *SMALL
    )
    assert (status, printed) == (0, f"{run}\n")
    config = run_config(run)
    assert (config.model.shape, config.model.num_classes) == ((16, 24, 3), 2)
    assert math.prod(config.model.grid) <= 64
    held_out, train = (
        len(config.data.open("held-out")),
        len(config.data.open("train")),
    )
    assert 5 < held_out < 20
    assert train >= config.batch_size == 32
    first, second, third, *_ = errors.splitlines()
    assert first == (
        f"note: {folder}: {train} images to train on, {held_out} held out, 2 classes: cat, dog"
    )
    assert second == (
        "note: 16 x 24 x 3 values in patches of 4 x 4: 24 tokens, network of width 16"
    )
    assert third.startswith("note: 1 steps of 32 images; ")
    status, _, errors = command("sample.py", run, "--labels", "dog", "--count", 2)
    assert status == 0
    words = ("--steps", 1, "--count", 20, "--batch-size", 10)
    assert command("evaluate.py", run, *words)[0] == 0
    assert '"cat", "dog"' in (run / "report.html").read_text()
    words = ("train.py", "folder", "--data.folder", folder, "--run", run, "--resume", *SMALL)
    assert command(*words, "--steps", 2)[0] == 0
    write_images(folder, ("bear",), 3)
    status, _, errors = command(*words, "--steps", 3)
    assert status == 2
    assert "was begun with other classes: 'bear' is new; labels would mean" in errors
    words = ("train.py", "folder", "--data.folder", tmp_path / "no", "--run", "x")
    status, _, errors = command(*words)
    assert (status, errors) == (2, f"error: there is no folder or file {tmp_path / 'no'}\n")


def test_options_stand_in_any_order(command, tmp_path):
    folder, run = write_images(tmp_path / "images", count=20, size=(8, 8)), tmp_path / "run"
    words = ("train.py", "data:folder", "--data.folder", folder, "--data.size", 8, *SMALL)
    words += ("objective:flow-matching", "--batch-size", 8, "--data.held-out.share", 0.3)
    assert command(*words, "--run", run, "--objective.class-dropout", 0.2)[0] == 0
    config = run_config(run)
    assert (config.batch_size, config.data.held_out.share) == (8, 0.3)
    assert config.objective == FlowMatching(0.2)
    words = ("time:adaptive", "--time.rtol", 0.1, "--count", 3, "--depth", 2)
    status, printed, _ = command("sample.py", run, *words)
    assert status == 0
    assert "depth reached per sample: 2\n" in printed


def test_many_tokens_are_warned_about(command, tmp_path):
    folder = write_images(tmp_path / "images", size=(24, 24))
    words = ("--data.folder", folder, "--model.patch-size", 2, "--run", "x", "--batch-size", 5000)
    _, _, errors = command("train.py", "folder", *words)
    assert (
        "note: 144 tokens an image, 64 are trained at a fair speed here: a step will take at least"
        in errors
    )


NO_SHARDS = "error: shards/imagenet-latents is not a folder of shards: it has no index.json"
LENGTH = ("objective:length-consistency",)
SHORTCUT = (*LENGTH, "objective.objective:shortcut")
README_FLAGS = [
    ("--optimizer.learning-rate", "1e-5", "--optimizer.ema", "0.99", "--init-from", "runs/x"),
    ("--log-every", "1", "--eval-every", "1", "--save-every", "1", "--model.depth-group", "2"),
    (*LENGTH, "--objective.every", "4"),
    (*SHORTCUT, "--objective.objective.every", "4", "--objective.objective.class-dropout", "0.2"),
    (*SHORTCUT, "--objective.objective.guidance", "0"),
    ("objective:flow-matching", "--objective.times", "grid"),
    (*LENGTH, "objective.objective:flow-matching", "--objective.objective.sigma", "0.1"),
    (*LENGTH, "--objective.teacher-depth", "deeper"),
    (*LENGTH, "objective.objective:consistency-distillation"),
    ("objective:live-reflow", "--objective.steps", "4"),
    ("objective:progressive", "--objective.guidance", "2"),
    ("objective:mean-flow", "--objective.power", "0"),
    ("objective:mean-flow", "--objective.tangent", "network", "--objective.max-guidance", "8"),
    ("objective:consistency", "--objective.class-dropout", "0"),
    ("--teacher", "runs/x"),
    ("--snapshot-every", "1000", "--optimizer.average-widths", "0.05", "0.2"),
    (
        "--logging.sample-every",
        "500",
        "--logging.sample-steps",
        "1",
        "4",
        "--logging.peak-flops",
        "1e12",
    ),
    ("--loading.workers", "2", "--loading.threads", "1", "--loading.buffer", "2"),
    (*SHORTCUT, "data:shards", "--data.folder", "shards/imagenet-latents"),
    ("--logging.to", "tensorboard", "wandb", "--logging.sample-depths", "4", "12"),
]


@pytest.mark.parametrize("name", TRAIN_TYPES)
def test_a_word_chooses_the_training_type(command, name):
    status, _, errors = command("train.py", "imagenet-b", name, "--run", "nowhere")
    assert status == 2
    assert NO_SHARDS in errors


@pytest.mark.parametrize("words", README_FLAGS, ids=" ".join)
def test_the_flags_of_the_readme_are_understood(command, words):
    """They are, if all that is missing in the end is the data."""
    status, _, errors = command("train.py", "imagenet-b", "--run", "nowhere", *words)
    assert status == 2
    assert NO_SHARDS in errors


DATA = [
    ("data:idx", "--data.pad", "2", "--data.class-names", "a", "b"),
    ("data:folder", "--data.size", "32", "--data.channels", "1", "--data.held-out.share", "0.1"),
    ("data:tfds", "--data.size", "32", "--data.held-out.seed", "1"),
    ("data:shards",),
]


@pytest.mark.parametrize("words", DATA, ids=" ".join)
def test_every_kind_of_data_is_chosen_by_its_name(command, words):
    """It is, if all that is missing in the end is the folder."""
    status, _, errors = command(
        "train.py", "fashion", "--run", "nowhere", *words, "--data.folder", "/no/where"
    )
    assert status == 2
    assert errors.startswith("error: ")
    assert "/no/where" in errors
    assert errors.count("\n") == 1


MISTAKES = [
    (("train.py", "imagenet-b"), "shards/imagenet-latents is not a folder of shards"),
    (("convert.py", "digits", "nowhere.pkl", "out"), "there is no file nowhere.pkl"),
    (("convert.py", "digits", "RUN", "RUN"), "exists; choose another path"),
    (
        ("convert.py", "RUN", "out", "--average-width", "0.1", "--average-step", "4"),
        "has no snapshot of step 4; there are those of 3, 6",
    ),
    (("convert.py", "RUN", "out", "--average-step", "4"), "give --average-width as well"),
    (
        ("train.py", "data:npz", "--data.path", "no.npz"),
        "no.npz is not a file of images and labels",
    ),
    (("train.py", "--loading.threads", "0"), "threads must be at least 1; got 0"),
    (("prepare.py", "nowhere", "out"), "there is no folder or file nowhere"),
    (("prepare.py", "RUN", "out", "--part", "4/3"), "like 3/16; got 4/3"),
    (("train.py", "digit"), "no preset is called 'digit'; did you mean digits?"),
    (("train.py", "digits", "--run", "RUN"), "exists; use --resume to continue it"),
    (("train.py", "--run", "nowhere", "moons", "--steps", "1"), "moons must come before all opt"),
    (
        ("train.py", "moons", "--data.held-out.share=0.1"),
        "train.py moons data:TYPE --data.held-out",
    ),
    (("train.py", "digits", "--run=x", "rfm"), "train.py digits rfm ..."),
    (("stats.py", "."), ". is a folder; give the path of a file"),
    (("stats.py", "/dev/null/x.npz", "--batch-size", "8"), "/dev/null/x.npz cannot be written"),
    (("classifier.py", "/dev/null/x", "--steps", "1"), "classifier.safetensors cannot be written"),
    (("sample.py", "RUN", "--out", "/dev/null/x/y"), "/dev/null/x/y.png cannot be written"),
    (("train.py", "digits", "meanflow"), "called 'meanflow'; did you mean mean-flow?"),
    (
        ("train.py", "digits", "progressive", "--run", "nowhere"),
        "distils a trained network; give teacher or init_from",
    ),
    (
        ("train.py", "digits", "rfm", "--teacher", "RUN", "--run", "nowhere"),
        "learns from data alone; leave out teacher",
    ),
    (("train.py", "--steps", "0"), "steps must be at least 1; got 0"),
    (("train.py", "--model.depth-min", "1"), "depth_min must lie between"),
    (("train.py", "--model.image-size", "16"), "the network takes examples of shape (16, 16, 1)"),
    (("train.py", "--model.num-classes", "5"), "give --model.num-classes 10"),
    (("stats.py", "x.npz", "--batch-size", "0"), "batch_size must be at least 1; got 0"),
    (("classifier.py", "x", "--steps", "0"), "steps must be at least 1; got 0"),
    (("evaluate.py", "RUN", "features:inception", "--features.path", "x.pickle"), "no file"),
    (("sample.py", "nowhere"), "nowhere is not a run folder"),
    (("info.py", "nowhere"), "nowhere is not a run folder"),
    (("train.py", "--logging.sample-depths", "3"), "depth must be one of 2, 4, 6"),
    (("evaluate.py", "nowhere"), "nowhere is not a run folder"),
    (("evaluate.py", "RUN", "--depths", "5"), "depth must be one of 2, 4 (in blocks); got 5"),
    (("sample.py", "RUN", "--depth", "3"), "depth must be one of 2, 4 (in blocks); got 3"),
    (("sample.py", "RUN", "--labels", "12"), "labels must lie between 0 and 9, or be names"),
    (("sample.py", "RUN", "--count", "0"), "count must be at least 1; got 0"),
    (("sample.py", "RUN", "time:fixed-steps", "--time.steps", "0"), "steps must be at least 1"),
    (("sample.py", "RUN", "time:adaptive", "--time.rtol", "-1"), "rtol must be positive; got -1"),
    (
        ("sample.py", "RUN", "time:adaptive", "--time.max-steps", "1"),
        "the time axis needed more than 1 steps",
    ),
    (
        ("sample.py", "RUN", "length:adaptive", "--length.max-steps", "1"),
        "the length axis needed more than 1 steps",
    ),
]


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_mistake_is_one_line_and_a_status(command, tiny_run, words, message):
    status, _, errors = command(*(tiny_run if word == "RUN" else word for word in words))
    assert status == 2
    assert message in " ".join(errors.replace("│", " ").split())
    assert "Traceback" not in errors


def test_a_device_that_is_not_there_is_one_line(tiny_run):
    words = [sys.executable, str(SCRIPTS / "sample.py"), str(tiny_run), "--count", "1"]
    environment = {**os.environ, "JAX_PLATFORMS": "abacus"}
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("error: JAX_PLATFORMS=abacus finds no device here (")
    assert found.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_output_that_cannot_be_written_is_one_line_or_silence():
    """A program that reads the first line alone, and a full disk."""
    words = [sys.executable, "-c", "from odelt_eqx.commands import main; main()"]
    reader, writer = os.pipe()
    os.close(reader)
    for word, output, status, message in (
        ("inof", os.dup(writer), 2, "error: no command is called 'inof'; did you mean info?\n"),
        ("--help", writer, 141, ""),
        (
            "--help",
            os.open("/dev/full", os.O_WRONLY),
            2,
            "error: [Errno 28] No space left on device\n",
        ),
    ):
        found = subprocess.run(
            [*words, word], cwd=SCRIPTS.parent, stdout=output, stderr=subprocess.PIPE, text=True
        )
        os.close(output)
        assert (found.returncode, found.stderr) == (status, message)
    for word, streams, status, output in (
        ("--version", ">&-", 0, ""),
        ("inof", "2>&-", 2, ""),
        ("inof", ">&-", 2, "error: no command is called 'inof'; did you mean info?\n"),
    ):
        closed = ["sh", "-c", f'"$@" {streams}', "sh", *words, word]
        found = subprocess.run(closed, cwd=SCRIPTS.parent, capture_output=True, text=True)
        assert (found.returncode, found.stdout + found.stderr) == (status, output)


def test_help_ends_in_a_terminal_of_no_width(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1")
    status, text, _ = command("odelt", "info", "--help")
    assert status == 0
    assert "run folder" in text
