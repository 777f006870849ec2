"""The benchmarks at a tiny size: they run, agree and write the rows they print."""

import dataclasses
import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.evaluation.grid import Bounds, Row, load_grid
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.files import write_json
from odelt_eqx.nn.block import DiTBlock
from odelt_eqx.objective import LengthConsistency, TrainingTime
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.load import load
from odelt_eqx.training.train import train
from tests.conftest import NETWORK, TINY_RUN, assert_matches
from tests.evaluation.makers import write_grid
from tests.training.conftest import POINTS_RUN

pytestmark = pytest.mark.thorough

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WAYS = ("published", "any")
TINY = ("--hidden-size", 64, "--tokens", 4, "--rounds", 1)


@pytest.fixture
def module(monkeypatch):
    """Import a benchmark as the others do: from its own folder."""
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


def run_process(name, *words):
    """Run a benchmark that needs devices of its own; return what it printed."""
    command = [sys.executable, str(BENCHMARKS / name), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def assert_reported(printed: str, path: Path, columns: str) -> list[dict]:
    """The JSON has a row for each row of the printed table, under the same columns."""
    found = json.loads(path.read_text())
    assert found["machine"] in printed
    assert found["config"]["out"] == str(path)
    head, _, *rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert head == f"| {columns} |"
    assert [" | ".join(row) for row in found["rows"]] == [columns] * len(rows)
    return found["rows"]


@pytest.mark.slow
def test_the_length_solve_agrees_with_loops_by_hand(benchmark, tmp_path):
    out = tmp_path / "made" / "rows.json"
    words = ("--batch-size", 2, "--depth", 2, "--group", 1, "--solvers", "heun", "--out", out)
    printed = benchmark("length_solve.py", *TINY, *words)
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
    u = by_hand.run_euler(((1.0, 2.0), (3.0, 4.0)), np.float32(1), None, add)
    assert u == 4 + 13


def test_scanning_stacked_weights_is_the_unrolled_loop(module):
    by_hand = module("by_hand")
    keys = jax.random.split(jax.random.key(0), 6)
    blocks = [DiTBlock(TINY_RUN.model, key=key) for key in keys[:4]]
    groups = (tuple(blocks[:2]), tuple(blocks[2:]))
    inputs = jax.random.normal(keys[4], (2, 4, 16)), jax.random.normal(keys[5], (2, 16))
    u = by_hand.scan_euler(by_hand.stack(groups), *inputs)
    assert_matches(u, by_hand.run_euler(groups, *inputs))


@pytest.mark.slow
def test_seconds_to_a_first_image_come_from_fresh_processes(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    out = tmp_path / "rows.json"
    words = ("--shapes", 1, 1, 1, "--firsts", "image", "--out", out)
    printed = benchmark("compile.py", *TINY, *words)
    columns = "depth | first | contestant | import s | build s | cached build s | first s"
    columns += " | cached first s | ratio | cached ratio"
    ours, stacked = assert_reported(printed, out, columns)
    assert (ours["depth"], ours["first"], ours["contestant"]) == (1, "image", "ours")
    assert (ours["ratio"], ours["cached ratio"]) == (1, 1)
    assert stacked["contestant"] == "ours, stacked"
    for row in (ours, stacked):
        assert min(value for name, value in row.items() if name.endswith(" s")) > 0


@pytest.mark.slow
def test_one_process_measures_a_first_step(module):
    first = module("compile")
    config = first.Config(hidden_size=64, tokens=4, shapes=((2, 1, 1),))
    assert min(first.measure_here(config, "step", "ours")) > 0


def test_masking_hides_the_depths_from_the_tracer_and_changes_no_draw(module):
    masked = module("length_consistency").Masked(LengthConsistency())
    arguments = (jax.random.key(0), 8, NETWORK, TrainingTime(0, 100))
    known = LengthConsistency().draw(*arguments)
    hidden = masked.draw(*arguments)
    assert isinstance(known.student, np.ndarray)
    assert isinstance(hidden.student, jax.Array)
    jax.tree.map(np.testing.assert_array_equal, hidden, known)


def test_bytes_sent_are_those_of_the_results_of_collectives(module):
    program = """
      %a = f32[8,4]{1,0} all-reduce(%x), replica_groups={}
      %b = (bf16[3]{0}, pred[2]{0}) all-reduce-start(%y), replica_groups={}
      %c = s32[] all-gather(%z), dimensions={0}
      %d = f32[100]{0} add(%a, %a)
    """
    sent = module("devices").sent_bytes(program)
    assert sent == {"all-reduce": 8 * 4 * 4 + 3 * 2 + 2, "all-gather": 4}


@pytest.mark.slow
def test_programs_for_a_gpu(benchmark, module, monkeypatch, tmp_path):
    """The version that JAX asks for here is not installed on every machine."""
    check = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(check, lambda: 92800)
    jax.clear_caches()  # of blocks that were traced without it
    out = tmp_path / "rows.json"
    printed = benchmark("cuda.py", "digits", "--out", out)
    step, *samplers = assert_reported(printed, out, " | ".join(module("cuda").COLUMNS))
    donated, arrays = step["donated"].split(" of ")
    assert donated == arrays
    assert (step["fused attention"], step["its gradient"]) == (18, 6)  # two of them by teachers
    assert [row["fused attention"] for row in samplers] == [6, 6, 6]
    for row in (step, *samplers):
        assert row["float64"] == row["callbacks"] == row["transfers"] == 0
        assert row["products of bfloat16"] > row["of float32"] > 0


def test_what_a_gpu_should_not_get_is_counted(module):
    def bad(x):
        x = jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return jax.jit(lambda x: x.astype("float64") @ x.astype("float64"))(x)

    with jax.enable_x64(True):
        text = jax.jit(bad).lower(jax.numpy.ones((2, 2), "float32")).as_text()
    found = module("cuda").contents(text)
    assert found.callbacks == 1
    assert found.float64 > 0
    assert found.bfloat16 == found.float32 == found.attention == 0


def test_images_per_second(benchmark):
    printed = benchmark("data.py", "--size", 16, "--raw-size", 20, 16, "--count", 4, "--rounds", 1)
    head, *ways = [line for line in printed.splitlines() if line.startswith("| ")]
    assert head == "| way | images per second and core | range | × plain |"
    assert len(ways) == 7


@pytest.mark.slow
def test_sampling(benchmark, module, tmp_path):
    out = tmp_path / "rows.json"
    words = ("--depth", 1, "--group", 1, "--batches", 2, "--steps", 1, 2, 4, "--out", out)
    printed = benchmark("sampling.py", *TINY, *words, "--guidance", 0, 1.5, "--solvers", "heun")
    rows = assert_reported(printed, out, " | ".join(module("sampling").COLUMNS))
    euler = ["loop by hand", "odelt.sample", "CompiledSampler"]
    assert [row["contestant"] for row in rows] == 2 * [*3 * euler, "CompiledSampler"]
    assert "- batch 2, guidance 1.5, depth 1: " in printed


@pytest.mark.slow
def test_training(benchmark, module, tmp_path):
    out = tmp_path / "rows.json"
    words = ("--batch-size", 8, "--shapes", 1, 1, 1, "--out", out)
    printed = benchmark("training.py", *TINY, *words)
    rows = assert_reported(printed, out, " | ".join(module("training").COLUMNS))
    assert [row["contestant"] for row in rows] == [
        *("keep", "recompute", "stacked", "stacked, recompute")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_examples_that_leave_compute_what_masked_ones_do(module, tmp_path, devices):
    out = tmp_path / "rows.json"
    words = ("--shapes", 2, 1, 1, "--devices", devices, "--out", out)
    printed = run_process("length_consistency.py", *TINY, *words)
    rows = assert_reported(printed, out, " | ".join(module("length_consistency").COLUMNS))
    assert f"{devices} x cpu" in printed
    assert [row["part"] for row in rows] == 3 * ["whole step"] + 3 * ["student"]
    assert [row["examples"] for row in rows] == 2 * ["masked", "leaving", "leaving, recomputing"]


@pytest.mark.slow
def test_two_devices_hold_half_the_state_each():
    printed = run_process("devices.py", "moons", "--devices", 2, "--step")
    copied, split, *steps = [line for line in printed.splitlines() if "dp |" in line]
    assert copied.endswith("| 1.000 |")
    assert split.split(" | ")[-1].startswith("0.5")
    assert all("all-reduce" in step for step in steps)


@pytest.mark.slow
def test_solvers(benchmark, tiny_run, tmp_path):
    out = tmp_path / "solvers.json"
    words = ("--evaluations", 2, "--solvers", "euler", "heun", "--grids", "cosine")
    printed = benchmark(
        "solvers.py", tiny_run, *words, "--count", 45, "--batch-size", 20, "--out", out
    )
    columns = ("time solver", "steps", "network evaluations", "distance to the flow")
    columns += ("class accuracy", "its error", "Fréchet distance", "error of that")
    rows = assert_reported(printed, out, " | ".join((*columns, "there and back")))
    costs = [(row["time solver"], row["steps"], row["network evaluations"]) for row in rows[1:]]
    assert costs == [("euler, cosine", 2, 2), ("heun, cosine", 1, 2)]
    assert rows[0]["distance to the flow"] == 0 < rows[-1]["distance to the flow"]


def test_frontiers_are_of_what_a_number_of_blocks_can_buy(benchmark, capsys, tmp_path):
    def row(solver, depth, steps, frechet, second, **options):
        time = odelt.FixedSteps(steps, solver)
        config = odelt.SampleConfig(time=time, depth=depth, **options)
        quality = Quality(frechet, 0.1, precision=0.9, recall=0.8, second=second, second_error=0.2)
        taken, blocks = float(steps), float(depth * steps)
        return Row(config, quality, taken, 0.0, taken, blocks, 1.0, 10, None, "a.png")

    plain = (row("euler", 2, 3, 4.0, 3.0), row("euler", 2, 6, 3.0, 2.0))
    better = row("ab2", 2, 6, 2.0, 1.5)
    one_judge = row("ab2", 2, 5, 1.9, 9.0)  # the nearest by one judge alone
    guided = row("euler", 4, 6, 1.0, 1.0, depth_guidance=1.0)
    runs = tmp_path / "first", tmp_path / "second"
    for run, rows in zip(runs, ((*plain, better, one_judge, guided), plain), strict=True):
        (run / "search").mkdir(parents=True)
        grid = load_grid(write_grid(run / "search", rows) / "grid.json")
        bounds = Bounds(Quality(0.5, second=0.4), grid.bounds.noise)
        grid = dataclasses.replace(grid, second="edges", bounds=bounds)
        write_json(run / "search" / "grid.json", to_dict(grid))
    out, figure = tmp_path / "rows.json", tmp_path / "frontiers.png"
    words = ("--blocks", 6, 12, 24, "--out", out, "--figure", figure)
    benchmark("frontiers.py", *runs, *words)
    found = [
        (row["training"], row["blocks at most"], row["sampling"], row["Fréchet distance (pixels)"])
        for row in json.loads(out.read_text())["rows"]
    ]
    usual = lambda name: [
        (f"{name}, published sampling", 6, "3 time steps", "4.00 ± 0.10"),
        (f"{name}, published sampling", 12, "6 time steps", "3.00 ± 0.10"),
    ]
    assert found == [
        *usual("first"),
        ("first, any sampling", 6, "3 time steps", "4.00 ± 0.10"),
        ("first, any sampling", 12, "6 time steps, ab2", "2.00 ± 0.10"),
        ("first, any sampling", 24, "6 time steps", "1.00 ± 0.10"),
        *usual("second"),
        *(
            (name.replace("published sampling", "any sampling"), *rest)
            for name, *rest in usual("second")
        ),
    ]
    assert figure.stat().st_size > 10_000
    with pytest.raises(SystemExit):
        benchmark("frontiers.py", *runs, "--blocks", 5)
    assert "no row costs at most 5 blocks, one costs 6: raise --blocks" in capsys.readouterr().err
    same = tmp_path / "other" / "first"
    shutil.copytree(runs[0], same)
    benchmark("frontiers.py", runs[0], same, "--blocks", 6, "--out", out, "--figure", figure)
    trainings = [row["training"] for row in json.loads(out.read_text())["rows"]]
    assert trainings == [f"{run}, {way} sampling" for run in (runs[0], same) for way in WAYS]


def test_what_a_benchmark_cannot_measure_is_one_line(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark("block.py", "--preset", "moons")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: the preset moons has no transformer; name one such as digits"
    for path in BENCHMARKS.glob("*.py"):
        begins = path.read_text().partition('if __name__ == "__main__":')[2]
        assert not begins or "run_command(" in begins or path.name == "limits.py", path


@pytest.mark.slow
def test_ways_to_fine_tune_a_plain_network(module, monkeypatch, capsys, tmp_path):
    """A residual one begins as it; where only the exits are trained the rest stays; and what was
    trained and measured is known the next time."""
    fine_tuning, plain, out = module("fine_tuning"), tmp_path / "plain", tmp_path / "rows.json"
    model = dataclasses.replace(POINTS_RUN.model, wiring="residual", length_embedding="none")
    train(dataclasses.replace(POINTS_RUN, model=model, steps=2), plain)
    ways = ("residual, length consistency", "residual, the exits alone")
    config = fine_tuning.Config(out, (plain,), (1,), ways, folder=tmp_path, count=40)
    fine_tuning.main(config)
    printed = capsys.readouterr().out
    rows = assert_reported(printed, out, "way | steps | depth 1: values | depth 2: values")
    assert [(row["way"], row["steps"]) for row in rows] == [(w, s) for w in ways for s in (0, 1)]
    assert rows[0]["depth 2: values"] == rows[2]["depth 2: values"]
    kept, source = load(tmp_path / f"plain, {ways[1]}, 1"), load(plain)
    np.testing.assert_array_equal(kept.embedding.weight, source.embedding.weight)
    assert (tmp_path / "fine-tuning.png").stat().st_size > 10_000
    monkeypatch.setattr(fine_tuning, "measure", None)
    fine_tuning.main(config)
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_ways_to_train_every_depth(module, monkeypatch, capsys, tmp_path):
    depth, out = module("depth"), tmp_path / "rows.json"
    ways = {
        name: way for name, way in depth.WAYS.items() if name.endswith(("tency", "supervision"))
    }
    monkeypatch.setattr(depth, "WAYS", ways)
    depth.main(depth.Config(out=out, preset="moons", rounds=1))
    columns = "training | ms (range) | ratio of ms | ratio of MiB | steps of equal cost"
    rows = assert_reported(capsys.readouterr().out, out, columns)
    assert [row["training"] for row in rows] == ["length consistency", "deep supervision"]
    assert (rows[0]["ratio of ms"], rows[0]["ratio of MiB"]) == (1, 1)
    assert rows[0]["steps of equal cost"] == 2000


@pytest.mark.slow
def test_choices_of_the_block(module, monkeypatch, capsys, tmp_path):
    block, out = module("block"), tmp_path / "rows.json"
    blocks = {name: block.BLOCKS[name] for name in ("published", "shared adaLN")}
    monkeypatch.setattr(block, "BLOCKS", blocks)
    monkeypatch.setattr(block, "preset", {"tiny": TINY_RUN}.get)
    block.main(block.Config(out=out, preset="tiny", rounds=1))
    rows = assert_reported(capsys.readouterr().out, out, " | ".join(block.COLUMNS))
    assert [row["block"] for row in rows] == [*blocks]
    assert all(rows[0][name] == 1 for name in block.COLUMNS if name.startswith("ratio"))
    count, fewer = (int(row["parameters"].replace(",", "")) for row in rows)
    assert count - fewer == 3 * 6 * 16 * (16 + 1) - 4 * 6 * 16
