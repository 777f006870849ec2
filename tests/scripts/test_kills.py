"""Commands that are killed at random moments and started again."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from odelt_eqx.evaluation.grid import load_grid
from tests.data.makers import write_images

ROOT = Path(__file__).parents[2]


def start(script, *words):
    """Start a script in a session of its own, so that its workers can be killed with it or left."""
    return subprocess.Popen(
        [sys.executable, ROOT / "scripts" / script, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_when(process, condition, chance):
    """Wait for a condition and some milliseconds more, and kill; return whether it still ran."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    running = process.poll() is None
    if chance.random() < 0.5:
        os.kill(process.pid, signal.SIGKILL)  # workers live on for a while
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def contents(folder):
    """The bytes of every file."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_preparing_that_is_killed_makes_the_same_shards(tmp_path):
    images = write_images(tmp_path / "images", count=600, size=(64, 64))
    out, chance = tmp_path / "out", random.Random(0)
    words = ("--size", 48, "--chunk", 25, "--workers", 2)
    assert start("prepare.py", images, tmp_path / "whole", *words).wait() == 0
    killed = 0
    for shards in (0, 1, 3, 6, 9, 12, 15, 18):
        written = lambda shards=shards: len(list(out.glob("*.array_record"))) >= shards
        killed += kill_when(start("prepare.py", images, out, *words), written, chance)
    assert killed >= 5
    assert start("prepare.py", images, out, *words).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_an_evaluation_that_is_killed_measures_the_same_grid(tiny_run, tmp_path):
    """What was measured is kept, and the run is not touched."""
    run, chance = Path(shutil.copytree(tiny_run, tmp_path / "run")), random.Random(0)
    for path in (run / "grid.json", run / "rows.jsonl"):
        path.unlink(missing_ok=True)
    before = contents(run)
    words = (run, "--count", 64, "--batch-size", 32, "--steps", 1, 2, 3, 4)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert start("evaluate.py", *words, "--out", whole).wait() == 0
    rows = lambda: (out / "rows.jsonl").read_bytes().count(b"\n") if out.is_dir() else 0
    killed = 0
    for measured in (0, 1, 3, 5, 7):
        condition = lambda n=measured: (out / "rows.jsonl").exists() and rows() >= n
        killed += kill_when(start("evaluate.py", *words, "--out", out), condition, chance)
    assert killed >= 3
    assert start("evaluate.py", *words, "--out", out).wait() == 0
    qualities = [
        [(row.config, row.quality) for row in load_grid(folder / "grid.json").rows]
        for folder in (whole, out)
    ]
    assert qualities[0] == qualities[1]
    assert contents(run) == before
