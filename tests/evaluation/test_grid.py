"""The map: what is measured, that it can be cut short, and what a budget buys."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.data import digits
from odelt_eqx.errors import Interrupted
from odelt_eqx.evaluation.features import PixelFeatures
from odelt_eqx.evaluation.generation import inputs
from odelt_eqx.evaluation.grid import Cell, GridConfig
from odelt_eqx.evaluation.measure import base_settings, measure
from odelt_eqx.evaluation.quality import Judge, Quality
from odelt_eqx.evaluation.recommend import recommend
from odelt_eqx.evaluation.sheets import columns, shown_count
from odelt_eqx.evaluation.store import Store
from odelt_eqx.evaluation.table import Bounds, Map
from odelt_eqx.images import tile
from odelt_eqx.sampling import Program, noise_of, sample_with_stats

pytestmark = pytest.mark.filterwarnings("ignore:.*samples cannot tell")


@pytest.fixture(scope="module")
def judge():
    return Judge(PixelFeatures(), digits("train"), digits("held-out"), num_classes=10)


def cells_of(model, judge, config, folder, **options):
    base = base_settings(model, judge, config, "digits")
    store = Store(folder / "rows.jsonl")
    return list(measure(model, judge, config, folder, store=store, base=base, **options))


def test_tiles_lie_in_rows():
    images = np.stack([np.full((2, 2, 1), v, np.float32) for v in (-1, 0, 1)])
    sheet = tile(images, 2)[..., 0]
    assert sheet.shape == (7, 7)
    assert [sheet[1, 1], sheet[1, 4], sheet[4, 1], sheet[4, 4]] == [0, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("shape", "classes", "count", "wide", "shown"),
    [
        ((8, 8, 1), 10, 1000, 10, 40),
        ((8, 8, 1), 10, 15, 10, 10),
        ((8, 8, 1), 1, 3, 10, 3),
        ((256, 256, 3), 1000, 500, 8, 8),
        ((1024, 1024, 3), 2, 5, 1, 1),
    ],
)
def test_sheets_stay_light(shape, classes, count, wide, shown):
    assert columns(shape, classes) == wide
    assert shown_count(shape, classes, count) == shown


def test_the_map_has_a_cell_for_each_depth_and_step_count(model, judge, tmp_path):
    config = GridConfig(
        steps=(1, 3), solvers=("bosh3",), tolerances=(1e-1,), count=20, batch_size=10
    )
    cells = cells_of(model, judge, config, tmp_path)
    fixed = [
        (c.depth, c.time.steps, c.evaluations, c.blocks) for c in cells if c.time.solver == "euler"
    ]
    assert fixed == [(d, steps, steps, d * steps) for d in (2, 4) for steps in (1, 3)]
    adaptive = [c for c in cells if c.time.solver == "bosh3"]
    assert [c.depth for c in adaptive] == [2, 4]
    assert all(c.blocks == c.depth * c.evaluations for c in adaptive)
    assert all(cell.milliseconds > 0 for cell in cells)
    assert cells[0].milliseconds * 10 < 300  # a batch of 10; compiling alone takes a second
    assert all((tmp_path / cell.samples).exists() for cell in cells)


def test_pictures_are_the_same_in_batches_of_any_size(model, judge, tmp_path):
    """Of 25 pictures, batches of 10 leave a part of one; adaptive steps are each picture's own."""
    config = GridConfig(
        **{"steps": (2,), "solvers": ("bosh3",), "tolerances": (1e-2,), "depths": (2,)},
        **{"guidance": (1.5,), "count": 25, "batch_size": 25, "per_example": True},
    )
    whole = cells_of(model, judge, config, tmp_path / "whole")
    parts = dataclasses.replace(config, batch_size=10)
    for ours, theirs in zip(cells_of(model, judge, parts, tmp_path), whole, strict=True):
        assert ours.quality.frechet == pytest.approx(theirs.quality.frechet, rel=1e-4)
        assert ours.quality.accuracy == theirs.quality.accuracy
        assert (ours.evaluations, ours.blocks) == (theirs.evaluations, theirs.blocks)


def test_the_noise_of_a_picture_is_its_own():
    noise, labels = inputs(odelt.DiTConfig(**SHAPE), 5, 3, 4)
    every = noise_of(5, np.arange(10), (4, 4, 1))
    np.testing.assert_array_equal(noise, every[3:7])
    assert labels.tolist() == [0, 1, 2, 0]
    assert np.abs(np.corrcoef(np.asarray(every).reshape(10, -1)) - np.eye(10)).max() < 0.9
    assert np.abs(every - noise_of(6, np.arange(10), (4, 4, 1))).min() > 0


SHAPE = {
    **{"image_size": 4, "channels": 1, "patch_size": 2, "hidden_size": 8, "num_heads": 2},
    **{"mlp_ratio": 1, "depth": 1, "depth_min": 1, "depth_group": 1, "num_classes": 3},
}


def test_a_map_cut_short_goes_on_to_what_it_would_have_been(model, judge, tmp_path):
    """Stopped in the second of two rows, after one of its three batches."""
    config = GridConfig(steps=(1, 2), depths=(2,), count=30, batch_size=10)
    whole = cells_of(model, judge, config, tmp_path / "whole")
    made = []

    def stop(more, **_):
        made.append(more)
        if sum(made) == 40:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM: the same command goes on from"):
        cells_of(model, judge, config, tmp_path, advance=stop)
    assert len(Store(tmp_path / "rows.jsonl")._rows) == 1
    assert len(list(tmp_path.glob(".*.partial.npz"))) == 1
    made.clear()
    after = cells_of(model, judge, config, tmp_path, advance=lambda more, **_: made.append(more))
    assert made == [30, 10, 10, 10, 0]  # a known row, what was done of the other, its rest
    assert not list(tmp_path.glob(".*.partial.npz"))
    for ours, theirs in zip(after, whole, strict=True):
        assert ours.quality == theirs.quality
        assert ours.evaluations == theirs.evaluations
        names = [
            (folder / cell.samples).read_bytes()
            for folder, cell in ((tmp_path, ours), (tmp_path / "whole", theirs))
        ]
        assert names[0] == names[1]


def test_a_row_is_known_by_all_that_it_depends_on(model, judge):
    config = GridConfig()
    base = base_settings(model, judge, config, "digits")
    assert base == base_settings(model, judge, config, "digits")
    for change in ({"count": 500}, {"seed": 1}, {"length": odelt.FixedSteps(solver="heun")}):
        other = dataclasses.replace(config, **change)
        assert base_settings(model, judge, other, "digits") != base
    moved = odelt.truncate(model, 2)
    assert base_settings(moved, judge, config, "digits")["weights"] != base["weights"]


def test_a_program_compiled_once_does_what_sampling_does(model):
    noise, labels = inputs(model.config, 0, 0, 6)
    program = Program(model, noise, labels, time=odelt.FixedSteps(), depth=2, guidance=3.0)
    for steps, guidance in ((1, 3.0), (4, 1.5)):
        time = odelt.FixedSteps(steps=steps)
        images, stats = program(noise, labels, time, guidance)
        expected, _ = sample_with_stats(model, noise, labels, time=time, depth=2, guidance=guidance)
        np.testing.assert_allclose(images, expected, atol=1e-5)
        assert stats.evaluations.tolist() == [2 * steps] * 6
    assert program.peak_bytes > sum(x.size for x in (noise, labels)) * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (0,)}, r"steps must be positive numbers; got \(0,\)"),
        ({"steps": ()}, "there is nothing to measure: give steps, or solvers and tolerances"),
        ({"guidance": ()}, "there is nothing to measure"),
        ({"likelihood": -1}, "likelihood must be a number of probes; got -1"),
        ({"count": 100, "batch_size": 300}, "between 1 and count, .* got 300 and 100"),
    ],
)
def test_a_map_that_cannot_be_measured_is_refused(change, message):
    with pytest.raises(odelt.InputError, match=message):
        GridConfig(**change)


@pytest.fixture
def measured(tmp_path):
    """A map of four settings: (milliseconds, bytes, distance)."""
    figures = {(2, 1): (1.0, 10, 9.0), (2, 4): (4.0, 10, 5.0), (4, 1): (2.0, 20, 7.0)}
    figures[4, 4] = (8.0, 20, 5.0)
    cells = tuple(
        Cell(
            **{"depth": depth, "guidance": 1.5, "time": odelt.FixedSteps(steps=steps)},
            **{"accepted": 1.0 * steps, "rejected": 0.0, "evaluations": 1.0, "blocks": 1.0},
            **{"quality": Quality(distance), "milliseconds": ms, "memory": size},
            **{"device_memory": None, "samples": ""},
        )
        for (depth, steps), (ms, size, distance) in figures.items()
    )
    made = Map(
        image_shape=(8, 8, 1),
        **{"run": "run", "step": 1, "features": "pixels", "reference": "", "accuracy_by": ""},
        **{"count": 10, "batch_size": 10, "length": odelt.FixedSteps(), "seed": 0},
        **{"device": "here", "jax": "", "bounds": Bounds(Quality(1.0), Quality(9.0))},
        cells=cells,
    )
    (tmp_path / "table.json").write_text(made.text())
    return tmp_path


def test_the_best_that_a_budget_allows_is_recommended(measured):
    chosen = lambda **budget: (lambda cell: (cell.depth, cell.time.steps))(
        recommend(measured, **budget).cell
    )
    assert chosen(milliseconds=1.5) == (2, 1)
    assert chosen(milliseconds=3) == (4, 1)
    assert chosen(milliseconds=100) == (2, 4)  # as good as the last one, and faster
    assert chosen(memory=10) == (2, 4)
    assert chosen(milliseconds=3, memory=15) == (2, 1)
    options = odelt.recommend(measured / "table.json", memory=10).options
    assert (options["depth"], options["guidance"], options["time"].steps) == (2, 1.5, 4)


def test_a_budget_that_buys_nothing_is_one_line(measured, tmp_path):
    with pytest.raises(odelt.InputError, match=r"fastest setting takes 1 milli.* needs 10 bytes"):
        recommend(measured, milliseconds=0.5)
    with pytest.raises(odelt.InputError, match="give milliseconds, memory, or both"):
        recommend(measured)
    with pytest.raises(odelt.InputError, match=r"there is no map .*nowhere: make it with"):
        recommend(tmp_path / "nowhere", memory=1)
    for text in ("{", "[]", json.dumps({"cells": []})):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(odelt.InputError, match="is no map of this version") as caught:
            recommend(tmp_path, memory=1)
        assert "\n" not in str(caught.value)
