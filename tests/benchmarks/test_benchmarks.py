"""The benchmarks at a tiny size: they run, agree and write the rows they print."""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from odelt_eqx.nn.block import DiTBlock
from tests.conftest import assert_matches

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import a benchmark as its neighbours do: its folder is where modules are looked for."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in (set(sys.modules) - before) & {path.stem for path in BENCHMARKS.glob("*.py")}:
        del sys.modules[name]


@pytest.fixture
def benchmark(module, monkeypatch, capsys):
    """Run a benchmark as `python benchmarks/NAME` does; return what it printed."""
    cached, cores = jax.config.jax_enable_compilation_cache, os.sched_getaffinity(0)

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / name), *map(str, words)])
        runpy.run_path(sys.argv[0], run_name="__main__")
        return capsys.readouterr().out

    yield run
    jax.config.update("jax_enable_compilation_cache", cached)
    os.sched_setaffinity(0, cores)


def assert_reported(printed: str, path: Path, columns: str) -> list[dict]:
    """The JSON has a row for each row of the printed table, under the same columns."""
    found = json.loads(path.read_text())
    assert found["machine"] in printed
    head, _, *rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert head == f"| {columns} |"
    assert [" | ".join(row) for row in found["rows"]] == [columns] * len(rows)
    return found["rows"]


def test_the_solve_of_the_length_agrees_with_loops_by_hand(benchmark, tmp_path):
    out = tmp_path / "made" / "rows.json"
    words = ("--hidden-size", 64, "--tokens", 4, "--batch-size", 2, "--depth", 2, "--group", 1)
    words += ("--solvers", "heun", "--rounds", 1)
    printed = benchmark("length_solve.py", *words, "--out", out)
    columns = "solver | program | contestant | compile s | ratio of compile s"
    columns += " | ms (range) | ratio of ms | MiB | ratio of MiB"
    rows = assert_reported(printed, out, columns)
    assert [row["solver"] for row in rows] == ["heun"] * 6
    assert [row["program"] for row in rows] == ["forward"] * 3 + ["gradient"] * 3
    assert all(row["ms (range)"].keys() == {"median", "low", "high", "ratio"} for row in rows)
    assert all(row["MiB"] > 0 for row in rows)


def test_a_loop_by_hand_is_the_closed_form(module):
    by_hand = module("by_hand")
    add = lambda block, x, _: x + block
    # p: 1, 2, 4, so h = 6; then 6, 9, 13
    u = by_hand.unrolled(((1.0, 2.0), (3.0, 4.0)), np.float32(1), None, add)
    assert u == 4 + 13


def test_scanning_stacked_weights_is_the_unrolled_loop(module):
    by_hand = module("by_hand")
    keys = jax.random.split(jax.random.key(0), 6)
    blocks = [DiTBlock(16, 2, 2, 0.0, "float32", key=key) for key in keys[:4]]
    groups = (tuple(blocks[:2]), tuple(blocks[2:]))
    inputs = jax.random.normal(keys[4], (2, 4, 16)), jax.random.normal(keys[5], (2, 16))
    u = by_hand.scanned(by_hand.stacked(groups), *inputs)
    assert_matches(u, by_hand.unrolled(groups, *inputs))


def test_seconds_to_a_first_picture_come_from_fresh_processes(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    out = tmp_path / "rows.json"
    words = ("--hidden-size", 64, "--tokens", 4, "--batch-size", 8, "--depths", 12)
    printed = benchmark("compile.py", *words, "--firsts", "picture", "--out", out)
    columns = "depth | first | whose | import s | build s | cached build s | first s"
    columns += " | cached first s | ratio | cached ratio"
    ours, stacked = assert_reported(printed, out, columns)
    assert (ours["depth"], ours["first"], ours["whose"]) == (12, "picture", "ours")
    assert (ours["ratio"], ours["cached ratio"]) == (1, 1)
    assert stacked["whose"] == "ours, stacked"
    for row in (ours, stacked):
        assert min(value for name, value in row.items() if name.endswith(" s")) > 0


def test_one_process_measures_a_first_step(module, monkeypatch):
    first = module("compile")
    monkeypatch.setitem(first.GROUPS, 2, (1, 1))
    seconds = first.here(first.Config(hidden_size=64, tokens=4), 2, "step", "ours")
    assert min(seconds) > 0


TINY = ("--hidden-size", 64, "--tokens", 4, "--rounds", 1)


@pytest.mark.slow
def test_sampling(benchmark, module, tmp_path):
    out = tmp_path / "rows.json"
    words = ("--depth", 1, "--group", 1, "--batches", 2, "--steps", 1, "--out", out)
    printed = benchmark("sampling.py", *TINY, *words)
    rows = assert_reported(printed, out, " | ".join(module("sampling").COLUMNS))
    assert all(row["contestant"] for row in rows)


@pytest.mark.slow
def test_training(benchmark, module, tmp_path):
    out = tmp_path / "rows.json"
    words = ("--batch-size", 8, "--shapes", 1, 1, 1, "--out", out)
    printed = benchmark("training.py", *TINY, *words)
    rows = assert_reported(printed, out, " | ".join(module("training").COLUMNS))
    assert [row["contestant"] for row in rows] == [
        *("keep", "recompute", "stacked", "stacked, recompute")
    ]


def test_pictures_per_second(benchmark):
    printed = benchmark("data.py", "--size", 16, "--originals", 20, 16, "--count", 4, "--rounds", 1)
    head, *ways = [line for line in printed.splitlines() if line.startswith("| ")]
    assert head == "| way | pictures per second and core | range | × plain |"
    assert len(ways) == 7
