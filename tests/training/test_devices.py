"""Runs over several devices and processes: the same run as on one, and each goes on as another."""

import dataclasses
import json
import os
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
from odelt_eqx.evaluation.samples import SampleConfig, draw_samples
from odelt_eqx.hosts import Hosts
from odelt_eqx.sharding import check_batch, make_mesh
from odelt_eqx.training.checkpoint import run_config
from odelt_eqx.training.convert import convert
from odelt_eqx.training.loop import train
from tests.conftest import TINY_RUN

ROOT = Path(__file__).parents[2]
RUN = dataclasses.replace(
    TINY_RUN,
    model=dataclasses.replace(TINY_RUN.model, hidden_size=64),
    batch_size=24,  # on 8 devices, 3 each: two depths do not come out even
    log_every=1,
    save_every=100,
    keep=5,
)
PROCESS = """
import os, signal, sys
from pathlib import Path
import jax
from odelt_eqx import cli
from odelt_eqx.config import load_config
from odelt_eqx.errors import Interrupted
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.samples import SampleConfig, draw_samples
from odelt_eqx.hosts import Hosts
from odelt_eqx.training import loop

run, layout, stop, index, port = sys.argv[1:]
hosts = Hosts(coordinator=f"localhost:{port}", count=2, index=int(index)) if port else Hosts()
hosts.join()

class Stopped(loop.Progress):
    def advance(self, count=1):
        super().advance(count)
        if self._done == int(stop):  # the order reaches one process only
            os.kill(os.getpid(), signal.SIGTERM)

if stop and int(index) == hosts.count - 1 if port else stop:
    loop.Progress = Stopped
config = load_config(Path(run).with_name(layout + ".json"))
try:
    loop.train(config, Path(run), resume=Path(run).exists())
except Interrupted as order:
    print(order, file=sys.stderr)
    status = order.status
else:
    status = 0
draw_samples(Path(run), SampleConfig(count=10))  # 10 do not come out even among 8
if port:
    evaluate(Path(run), GridConfig(steps=(1,), depths=(2,), count=20, batch_size=10))
sys.exit(status)
"""


def start(config, run, layout, *, devices, stop="", index=0, port=""):
    """Train in a process of its own, which has so many devices, until it is done."""
    save_config(dataclasses.replace(config, sharding=layout), run.with_name(f"{layout}.json"))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    words = [sys.executable, "-c", PROCESS, run, layout, stop, index, port]
    return subprocess.Popen(
        list(map(str, words)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process, status):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors[-3000:]


def assert_same_run(run, other):
    """The same figures and weights, to rounding."""
    rows = [
        [json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()]
        for r in (run, other)
    ]
    for name in ("loss", "grad_norm", "held_out_loss"):
        ours, theirs = ([(x["step"], x[name]) for x in row if name in x] for row in rows)
        np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    for ours, theirs in zip(*(jax.tree.leaves(odelt.load(r)) for r in (run, other)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def assert_same_samples(run, out):
    """What all its devices drew of a run is what one draws."""
    draw_samples(run, SampleConfig(count=10, out=out))
    with np.load(run / "samples.npz") as ours, np.load(f"{out}.npz") as theirs:
        np.testing.assert_allclose(ours["images"], theirs["images"], atol=1e-4)


def assert_same_map(run, out):
    """What all its devices measured of a run is what one does."""
    evaluate(run, GridConfig(steps=(1,), depths=(2,), count=20, batch_size=10), out)
    ours, theirs = (json.loads((f / "table.json").read_text()) for f in (run, out))
    for a, b in zip(ours["cells"], theirs["cells"], strict=True):
        assert a["quality"]["frechet"] == pytest.approx(b["quality"]["frechet"], rel=1e-3)
        assert a["quality"]["accuracy"] == b["quality"]["accuracy"]
    assert ours["bounds"]["noise"] == pytest.approx(theirs["bounds"]["noise"], rel=1e-3)
    names = {path.name for path in run.iterdir()}
    assert {"report.html", "table.png", "rows.jsonl"} <= names
    assert not [name for name in names if "partial" in name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run on one device, which begins with the weights of another."""
    folder = tmp_path_factory.mktemp("devices")
    weights = odelt.DiT(RUN.model, key=jax.random.key(9))
    odelt.save_safetensors(weights, folder / "first.safetensors")
    convert(folder / "first.safetensors", folder / "first", RUN)
    train(dataclasses.replace(RUN, init_from=str(folder / "first")), folder / "alone")
    return folder / "alone"


def test_a_run_of_stacked_blocks_on_eight_devices_is_that_on_one(alone, tmp_path):
    config = run_config(alone)
    stacked = dataclasses.replace(config, model=dataclasses.replace(config.model, stacked=True))
    end(start(stacked, tmp_path / "run", "fsdp", devices=8), 0)
    assert_same_run(tmp_path / "run", alone)
    assert_same_samples(tmp_path / "run", tmp_path / "one")


def test_two_processes_then_two_devices_then_one_make_one_run(alone, tmp_path):
    """Two of 4 devices under fsdp, until one gets a signal; one of 2 under dp; one of 1."""
    config, run = run_config(alone), tmp_path / "run"
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    both = [start(config, run, "fsdp", devices=4, stop=2, index=i, port=port) for i in range(2)]
    for process in both:
        end(process, 143)
    assert_same_samples(run, tmp_path / "one")
    assert_same_map(run, tmp_path / "map")
    end(start(config, run, "dp", devices=2, stop=4), 143)
    train(config, run, resume=True)
    assert sorted(int(p.name) for p in run.glob("checkpoints/*")) == [2, 4, 6]
    assert_same_run(run, alone)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(odelt.InputError, match="a multiple of the 8 devices; got 12"):
        check_batch(12, jax.sharding.AbstractMesh((8, 1), ("data", "fsdp")))
    assert make_mesh("fsdp").size == 1


@pytest.mark.parametrize("told", [{"count": 2}, {"cluster": True, "index": 0}])
def test_the_other_processes_are_told_in_one_way(told):
    with pytest.raises(odelt.InputError, match=r"either hosts\.cluster or all of hosts\.coord"):
        Hosts(**told)
