"""Runs on several devices and processes equal the run on one, and resume as one another."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import save_config
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.samples import SampleRequest, save_samples
from odelt_eqx.objective import (
    DeepSupervision,
    LengthConsistency,
    MeanFlow,
    SelfAlignment,
    Shortcut,
)
from odelt_eqx.parallel import Processes, check_batch_size, make_mesh
from odelt_eqx.training.load import run_config
from odelt_eqx.training.train import train
from odelt_eqx.training.weights import convert
from tests.conftest import TINY_RUN
from tests.training.conftest import EVERY_OPTION, POINTS_RUN

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
CHANGES = {
    "batch_size": 24,  # on 8 devices, 3 each: two depths do not come out even
    "log_every": 1,
    "save_every": 100,
    "snapshot_every": 2,
    "keep": 5,
}
BLOCK = {"qk_norm": True, "norm": "scaled-rms", "rope": True, "mlp": "swiglu"}
BLOCK |= {"modulation": "shared", "logit_scale": "inverse-sqrt"}
IMAGES = dataclasses.replace(
    TINY_RUN,
    model=dataclasses.replace(TINY_RUN.model, hidden_size=64, **BLOCK),
    objective=LengthConsistency(MeanFlow(tangent="network", max_guidance=4.0)),
    **CHANGES,
)
POINTS = dataclasses.replace(
    POINTS_RUN,
    model=dataclasses.replace(POINTS_RUN.model, hidden_size=64),
    objective=LengthConsistency(EVERY_OPTION, every=8),
    **CHANGES,
)
GRID = GridConfig(steps=(1,), depths=(2,), count=20, batch_size=10)
PROCESS = """
import json, os, signal, sys
from pathlib import Path
from odelt_eqx.config import load_config
from odelt_eqx.errors import Interrupted
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.samples import SampleRequest, save_samples
from odelt_eqx.parallel import Processes
from odelt_eqx.progress import Progress
from odelt_eqx.training import train as module

run, config, stop, measure, sample = Path(sys.argv[1]), *map(json.loads, sys.argv[2:6])
Processes(**json.loads(sys.argv[6])).join()

class Stopped(Progress):
    def advance(self, count=1):
        super().advance(count)
        if self._done == stop:
            os.kill(os.getpid(), signal.SIGTERM)

if stop:
    module.Progress = Stopped
status = 0
try:
    module.train(load_config(Path(config)), run, resume=run.exists())
except Interrupted as error:
    status = error.status
if sample:
    save_samples(run, SampleRequest(count=10))  # 10 do not come out even among 4
if measure:
    evaluate(run, GridConfig(steps=(1,), depths=(2,), count=20, batch_size=10))
sys.exit(status)
"""


def start(config, run, layout, *, devices, stop=0, measure=False, sample=False, **processes):
    """Train in a process with a number of devices, until it gets a signal after `stop` steps."""
    path = run.with_name(f"{layout}.json")
    save_config(dataclasses.replace(config, sharding=layout), path)
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    options = map(json.dumps, (str(path), stop, measure, sample, processes))
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", PROCESS, str(run), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
    )


def end(processes, status):
    """Wait for the end of processes; one that does not come to it says where it is, and dies."""
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.send_signal(signal.SIGABRT)
        errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [status] * len(codes), "\n\n".join(text[-6000:] for text in errors)


def assert_same_run(run, other):
    """The same metrics and weights, to rounding."""
    rows = [
        [json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()]
        for r in (run, other)
    ]
    for name in ("loss", "grad_norm", "held_out_loss", "alignment"):
        ours, theirs = ([(x["step"], x[name]) for x in row if name in x] for row in rows)
        np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    for load in (odelt.load, lambda run: odelt.load_average(run, 0.05)):
        for ours, theirs in zip(*(jax.tree.leaves(load(r)) for r in (run, other)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def assert_same_samples(run, out):
    """One device generates the samples that all of them did."""
    save_samples(run, SampleRequest(count=10, out=out))
    with np.load(run / "samples.npz") as ours, np.load(f"{out}.npz") as theirs:
        np.testing.assert_allclose(ours["vectors"], theirs["vectors"], atol=1e-4)


def assert_same_grid(run, out):
    """One device measures the grid that all of them did."""
    evaluate(run, GRID, out)
    ours, theirs = (json.loads((folder / "grid.json").read_text()) for folder in (run, out))
    for a, b in zip(ours["rows"], theirs["rows"], strict=True):
        assert a["quality"]["frechet"] == pytest.approx(b["quality"]["frechet"], rel=1e-3)
        assert a["quality"]["accuracy"] == b["quality"]["accuracy"]
    known = lambda grid: {k: v for k, v in grid["bounds"]["noise"].items() if v is not None}
    assert known(ours) == pytest.approx(known(theirs), rel=1e-3)
    names = {path.name for path in run.iterdir()}
    assert {"report.html", "grid.png", "rows.jsonl"} <= names
    assert not [name for name in names if "partial" in name]


def train_alone(config, folder):
    """Train on one device, from the weights of another run."""
    weights = config.model.build(key=jax.random.key(9))
    odelt.save_safetensors(weights, folder / "first.safetensors")
    convert(folder / "first.safetensors", folder / "first", config)
    train(dataclasses.replace(config, init_from=str(folder / "first")), folder / "alone")
    return folder / "alone"


@pytest.mark.slow
def test_a_run_of_stacked_blocks_on_eight_devices_is_that_on_one(tmp_path):
    alone, run = train_alone(IMAGES, tmp_path), tmp_path / "run"
    config = run_config(alone)
    stacked = dataclasses.replace(config, model=dataclasses.replace(config.model, stacked=True))
    end([start(stacked, run, "fsdp", devices=8)], 0)
    assert_same_run(run, alone)


@pytest.mark.slow
def test_every_depth_in_one_pass_on_four_devices_then_on_one_is_one_run(tmp_path):
    changes = {"length_embedding": "edge", "wiring": "residual", "ignore_step": False}
    model = dataclasses.replace(POINTS.model, projector=True, **changes)
    objective = SelfAlignment(DeepSupervision(Shortcut(), (2.0, 1.0), 0.5, "average"))
    points = dataclasses.replace(POINTS, model=model, objective=objective)
    alone, run = train_alone(points, tmp_path), tmp_path / "run"
    config = run_config(alone)
    end([start(config, run, "fsdp", devices=4, stop=3)], 143)
    end([start(config, run, "dp", devices=2, stop=4)], 143)
    train(config, run, resume=True)
    assert_same_run(run, alone)


@pytest.mark.parametrize("sampled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_then_two_devices_then_one_make_one_run(tmp_path, sampled):
    """Two of 2 devices under fsdp, until one gets a signal; one of 2 under dp; one of 1."""
    alone, run = train_alone(POINTS, tmp_path), tmp_path / "run"
    config = run_config(alone)
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    options = {"devices": 2, "measure": True, "sample": sampled}
    options |= {"coordinator": address, "count": 2}
    end([start(config, run, "fsdp", stop=2 * i, index=i, **options) for i in range(2)], 143)
    if sampled:
        assert_same_samples(run, tmp_path / "one")
    assert_same_grid(run, tmp_path / "grid")
    end([start(config, run, "dp", devices=2, stop=4)], 143)
    train(config, run, resume=True)
    assert sorted(int(p.name) for p in run.glob("checkpoints/*")) == [2, 4, 6]
    assert_same_run(run, alone)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(odelt.InputError, match="a multiple of the 8 devices; got 12"):
        check_batch_size(12, jax.sharding.AbstractMesh((8, 1), ("data", "fsdp")))
    assert make_mesh("fsdp").size == 1


@pytest.mark.parametrize("given", [{"count": 2}, {"cluster": True, "index": 0}])
def test_the_processes_are_found_in_one_way(given):
    with pytest.raises(odelt.InputError, match=r"either processes\.cluster or all of processes"):
        Processes(**given)
