"""Worker processes exit with their parent, even if it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.data.records import load_index
from tests.data.bad_images import encoded

ROOT = Path(__file__).parents[2]
READER = """
import sys, time
import numpy as np
from odelt_eqx.data import ArraySource, Loading, stream
if __name__ == "__main__":
    source = ArraySource(np.zeros((8, 2, 2, 1), np.float32), np.zeros(8, np.int32))
    batches = stream(source, 4, 0, loading=Loading(workers=1, threads=1, buffer=1))
    next(batches)
    print("ready", flush=True)
    time.sleep(600)
"""


def kill(words, ready):
    """Start a command, kill it once it is `ready`, and wait for all processes that it started."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while not ready(process):
        assert process.poll() is None
        time.sleep(0.01)
    workers = _children(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_readers_exit_with_a_killed_run(tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    kill([tmp_path / "reader.py"], lambda process: process.stdout.readline() == b"ready\n")


def test_preparing_resumes_after_it_was_killed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    (tmp_path / "noise.png").write_bytes(encoded(Image.fromarray(noise)))
    source, out = tmp_path / "many", tmp_path / "out"
    source.mkdir()
    for number in range(100):
        (source / f"{number}.png").symlink_to(tmp_path / "noise.png")
    words = ("--size", 64, "--chunk", 5, "--workers", 2)
    command = (ROOT / "scripts" / "prepare.py", source, out, *words)
    kill(command, lambda _: any(out.glob(".chunks/*.json")))
    assert not (out / "index.json").exists()
    prepare(source, out, PrepareConfig(size=64, chunk=5, workers=1))
    assert sum(map(sum, load_index(out).classes.values())) == 100


def _stat(process):
    """State and parent of a process; none if there is no such process."""
    try:
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return state, int(parent)


def _children(process):
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [child for child in processes if (stat := _stat(child)) and stat[1] == process]


def _runs(process):
    stat = _stat(process)
    return stat is not None and stat[0] != "Z"
