"""Runs that are killed, stopped, damaged or refused, by real signals and real files."""

import dataclasses
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import save_config
from odelt_eqx.nn.groups import network_template
from odelt_eqx.progress import Progress
from odelt_eqx.training.checkpoint import Checkpoints
from odelt_eqx.training.run_folder import start_run
from odelt_eqx.training.train import train
from tests.training.conftest import POINTS_RUN

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
RUN = dataclasses.replace(POINTS_RUN, steps=100_000, log_every=1, eval_every=100_000, save_every=3)
PROCESS = """
import sys
from pathlib import Path
from odelt_eqx.entry import run_command
from odelt_eqx.config import load_config
from odelt_eqx.training.run_folder import start_run
from odelt_eqx.training.train import train

run, config, *options = sys.argv[1:]
options = {option: True for option in options}
run_command(lambda: train(load_config(Path(config)), run, **options) and None)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs of processes that may be killed while they write one."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def process(tmp_path, cache):
    """Start a process that trains `config` in a run folder, with options of `train`."""

    def start(run, config, *options):
        save_config(config, tmp_path / "asked.json")
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, run, tmp_path / "asked.json", *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)},
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finished(process, seconds=300):
    """Wait for a process; return its status and its output without the progress."""
    _, errors = process.communicate(timeout=seconds)
    lines = re.split(r"[\r\n]+", errors.strip())
    return process.returncode, [line for line in lines if line and not line.startswith("train:")]


def steps_logged(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def kill_at_random(process, run, chance):
    """Wait for a few steps, some more milliseconds, and kill it, be it in a save or between."""
    target = steps_logged(run) + chance.randint(1, 5)
    wait_for(lambda: steps_logged(run) >= target, process)
    time.sleep(chance.uniform(0, 0.15))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()


def complete(run):
    return sorted(int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit())


MEASURED = {"second", "seconds", "bytes"}
"""Words in the names of metrics that differ between any two runs."""


def assert_same_run(run, other):
    """Bit-for-bit the same weights, EMA weights, snapshots of averages and metrics."""
    for weights in ("model", "ema"):
        pairs = zip(*(jax.tree.leaves(odelt.load(r, weights)) for r in (run, other)), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours, theirs)
    snapshots = [sorted(p.name for p in r.glob("snapshots/*")) for r in (run, other)]
    assert snapshots[0] == snapshots[1]
    if snapshots[0]:
        averages = (odelt.load_average(r, 0.1) for r in (run, other))
        for ours, theirs in zip(*map(jax.tree.leaves, averages), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    rows = [
        [json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()]
        for r in (run, other)
    ]
    timeless = [
        [{k: v for k, v in x.items() if not MEASURED & set(k.split("_"))} for x in r] for r in rows
    ]
    assert timeless[0] == timeless[1]


def survive(kills, config, process, where):
    """Kill a run so often, resume it each time, and compare it with an uninterrupted one.

    Return how many kills came after the first checkpoint, and while one was being written.
    """
    train(config, where / "whole")
    run, chance, after, inside = where / "killed", random.Random(0), 0, 0
    running = process(run, config)
    for _ in range(kills):
        kill_at_random(running, run, chance)
        after += bool(complete(run))
        inside += any(run.glob("checkpoints/*tmp*"))
        running = process(run, config, "resume" if complete(run) else "overwrite")
    status, lines = finished(running)
    assert (status, lines) == (0, [])
    assert_same_run(run, where / "whole")
    return after, inside


def test_a_killed_run_ends_with_the_same_bits(process, tmp_path):
    survive(1, dataclasses.replace(RUN, steps=24, snapshot_every=2), process, tmp_path)


@pytest.mark.slow
def test_a_run_that_is_killed_30_times_ends_with_the_same_bits(process, tmp_path):
    config = dataclasses.replace(RUN, steps=600, snapshot_every=4)
    after, inside = survive(30, config, process, tmp_path)
    print(f"{after} kills after the first checkpoint, {inside} while one was being written")
    assert after >= 20


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_step_saves_and_leaves(process, tmp_path, number):
    """Until then, no other process can train in the folder."""
    run, config = tmp_path / "run", dataclasses.replace(RUN, save_every=100_000)
    running = process(run, config)
    wait_for(lambda: steps_logged(run) >= 4, running)
    with pytest.raises(odelt.InputError, match="another process is training in"):
        train(config, run, overwrite=True)
    running.send_signal(number)
    status, lines = finished(running)
    (step,) = complete(run)
    assert status == 128 + number
    assert lines == [
        f"stopped: {number.name}: step {step} of 100000 is saved in {run}; use --resume to continue"
    ]
    assert steps_logged(run) == step


@pytest.mark.slow
def test_a_file_that_is_refused_is_one_line_and_loses_nothing(process, tmp_path):
    """The weights and the optimizer's moments are larger than the limit, the log is smaller."""
    run, config = tmp_path / "run", dataclasses.replace(RUN, log_every=20)
    stopped = process(run, config)
    wait_for(lambda: complete(run), stopped)
    stopped.send_signal(signal.SIGTERM)
    finished(stopped)
    before = complete(run)
    limited = process(run, config, "resume")
    resource.prlimit(limited.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    status, lines = finished(limited)
    lines = [line for line in lines if "compilation cache" not in line]  # refused as well
    assert (status, lines) == (
        2,
        [
            f"error: a checkpoint of {run} could not be written (File too large); the last good "
            f"checkpoint is that of step {before[-1]}"
        ],
    )
    resumed = process(run, config, "resume")
    wait_for(lambda: complete(run)[-1] > before[-1], resumed)
    resumed.send_signal(signal.SIGTERM)
    assert finished(resumed)[0] == 143


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(small_disk, capfd):
    run, config = small_disk / "run", dataclasses.replace(POINTS_RUN, save_every=1, keep=6)
    with pytest.raises(odelt.InputError, match=r"No space left on device"):
        train(config, run)
    assert "Traceback" not in capfd.readouterr().err
    kept = complete(run)
    assert kept
    assert odelt.load(run).config == config.model
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert int(train(config, run, resume=True).step) == 6
    assert complete(run) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_run_killed_while_it_saves_on_a_nearly_full_disk_ends_with_the_same_bits(
    process, small_disk, tmp_path
):
    """The disk has room for half a checkpoint more; it is killed before or after it finds out."""
    config = dataclasses.replace(RUN, steps=300, save_every=50)
    train(config, tmp_path / "whole")
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    run, filler, inside = small_disk / "run", small_disk / "filler", 0
    running = process(run, config)
    wait_for(lambda: complete(run), running)
    for _ in range(6):
        known = complete(run)
        size = sum(p.stat().st_size for p in (run / "checkpoints").rglob("*")) // len(known)
        filler.write_bytes(bytes(max(shutil.disk_usage(small_disk).free - size // 2, 0)))
        wait_for(lambda: any(run.glob("checkpoints/*tmp*")), running)
        running.kill()
        running.communicate()
        inside += any(run.glob("checkpoints/*tmp*"))
        assert set(complete(run)) >= set(known[-1:])
        assert odelt.load(run).config == config.model
        filler.unlink()
        running = process(run, config, "resume")
    assert finished(running) == (0, [])
    assert inside
    assert_same_run(run, tmp_path / "whole")


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    with pytest.raises(odelt.InputError, match=r"cannot be written: .*Not a directory"):
        train(POINTS_RUN, Path("/dev/null/run"))
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.raises(odelt.InputError, match=r"cannot be written: .*Permission denied"):
                train(POINTS_RUN, tmp_path / "run")
        finally:
            os.seteuid(0)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("item", "harm"), [("model", truncate), ("optimizer", zero), ("ema", Path.unlink)]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    points_run, tmp_path, capsys, item, harm
):
    run = shutil.copytree(points_run, tmp_path / "run")
    for path in (run / "checkpoints" / "6" / item).rglob("*"):
        if path.is_file():
            harm(path)
    if item == "model":
        with Checkpoints(run, write=False) as checkpoints:
            found = checkpoints.restore_weights("model", odelt.load(points_run))
        assert "that of step 3 is used" in capsys.readouterr().err
        assert jax.tree.structure(found) == jax.tree.structure(odelt.load(points_run))
        assert complete(run) == [3, 6]  # reading moves nothing
    train(POINTS_RUN, run, resume=True)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "the checkpoint of step 6" in notes[0]
    assert f"it is now {run}/damaged/6" in notes[0]
    assert complete(run) == [3, 6]
    assert_same_run(run, points_run)


LACKS = [
    MemoryError(),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes"),
    OSError(errno.EMFILE, "Too many open files"),
    ValueError("Error opening: Too many open files [os_error_code='24']"),
]


@pytest.mark.parametrize("error", LACKS, ids=repr)
def test_a_checkpoint_is_not_damaged_because_the_machine_lacks_something(
    points_run, tmp_path, monkeypatch, error
):
    run = shutil.copytree(points_run, tmp_path / "run")

    def fail(*_):
        raise error

    monkeypatch.setattr(Checkpoints, "_read", fail)
    with pytest.raises(type(error)) as raised, Checkpoints(run) as checkpoints:
        checkpoints.restore_weights("ema", network_template(POINTS_RUN.model))
    assert raised.value is error
    assert complete(run) == [3, 6]


@pytest.mark.parametrize("left", [None, "checkpoints"])
def test_a_run_that_is_moved_while_it_trains_stops(tmp_path, monkeypatch, left):
    """What is saved in its place is no run: it has no config and no earlier checkpoints."""
    run = tmp_path / "run"

    class Moving(Progress):
        def advance(self, count=1):
            super().advance(count)
            if self._done == 4:
                while complete(run) != [3]:  # it is written in the background
                    time.sleep(0.01)
                run.rename(tmp_path / "moved")
                if left is not None:  # as a checkpoint that is being written makes it anew
                    (run / left).mkdir(parents=True)

    monkeypatch.setattr("odelt_eqx.training.train.Progress", Moving)
    with pytest.raises(odelt.InputError, match=r"could not be written .*(moved|No such file)"):
        train(POINTS_RUN, run)
    assert complete(tmp_path / "moved") == [3]
    assert not list(run.glob("checkpoints/*"))


def test_where_no_checkpoint_can_be_read_nothing_is_moved(points_run, tmp_path):
    run = shutil.copytree(points_run, tmp_path / "run")
    for path in (run / "checkpoints").rglob("*/model/**/*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(odelt.InputError, match=r"no checkpoint of .* can be read; that of step 6"):
        train(POINTS_RUN, run, resume=True)
    assert complete(run) == [3, 6]


def test_the_newest_and_every_so_many_th_are_kept(tmp_path):
    config = dataclasses.replace(POINTS_RUN, save_every=1, keep=1, keep_every=2)
    train(config, tmp_path / "run")
    assert complete(tmp_path / "run") == [2, 4, 6]
    train(dataclasses.replace(config, keep_every=None), tmp_path / "run", overwrite=True)
    assert complete(tmp_path / "run") == [6]


def test_an_overwriting_cut_short_can_be_overwritten_only(points_run, tmp_path, monkeypatch):
    """Checkpoints go first and in one move; a start that was cut short is as good as none."""
    run = shutil.copytree(points_run, tmp_path / "run")

    def interrupted(*_, **__):
        raise KeyboardInterrupt  # no signal: a job that a shell started with & ignores SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start_run(POINTS_RUN, run)
    with pytest.raises(odelt.InputError, match="has no checkpoint to resume; use --overwrite"):
        train(POINTS_RUN, run, resume=True)
    train(POINTS_RUN, run, overwrite=True)
    assert complete(run) == [3, 6]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ".lock").touch()
    (empty / ".config.partial.json").write_text("{")
    train(POINTS_RUN, empty)
    assert complete(empty) == [3, 6]
