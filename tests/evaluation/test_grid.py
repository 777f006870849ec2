"""The rows of a grid, their interruption, and what a budget buys."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.data import digits
from odelt_eqx.data.source import ArraySource
from odelt_eqx.errors import Interrupted
from odelt_eqx.evaluation.figures import sheet_columns, shown_count
from odelt_eqx.evaluation.grid import Bounds, GridConfig, Row, load_grid
from odelt_eqx.evaluation.measure import Meter, Store, inputs, lock_results
from odelt_eqx.evaluation.quality import Judge, Quality
from odelt_eqx.evaluation.recommend import recommend
from odelt_eqx.images import tile
from odelt_eqx.noise import sample_noise
from odelt_eqx.progress import Progress
from odelt_eqx.serialize import from_dict, to_dict
from tests.evaluation.makers import row, write_grid

pytestmark = pytest.mark.filterwarnings("ignore:.*samples do not determine")


class Silent(Progress):
    """Records the numbers it gets."""

    def __init__(self):
        super().__init__("test", 1)
        self.new = []

    def advance(self, count=1):
        self.new.append(count)


def measure(model, judge, config, folder, progress=None):
    meter = Meter(model, judge, config, folder)
    return list(meter.rows(progress or Silent()))


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
def test_sheets_stay_small(shape, classes, count, wide, shown):
    assert sheet_columns(shape, classes) == wide
    assert shown_count(shape, classes, count) == shown


def test_a_grid_has_a_row_for_each_depth_and_time_plan(model, judge, tmp_path):
    config = GridConfig(
        steps=(1, 3), adaptive=("bosh3",), tolerances=(1e-1,), count=20, batch_size=10
    )
    rows = measure(model, judge, config, tmp_path)
    assert [row.config for row in rows] == config.sample_configs((2, 4))
    fixed = [(row.depth, row.accepted, row.evaluations, row.blocks) for row in rows]
    fixed = [numbers for numbers, row in zip(fixed, rows, strict=True) if row.solver == "euler"]
    assert fixed == [(d, steps, steps, d * steps) for d in (2, 4) for steps in (1, 3)]
    adaptive = [row for row in rows if row.time == "bosh3, 0.1"]
    assert [row.depth for row in adaptive] == [2, 4]
    assert all(row.blocks == row.depth * row.evaluations for row in adaptive)
    assert all(row.milliseconds > 0 for row in rows)
    assert rows[0].milliseconds * 10 < 300  # a batch of 10; compiling alone takes a second
    assert all((tmp_path / "samples" / row.samples).exists() for row in rows)


def test_numbers_of_numpy_are_those_that_are_read_back(any_types):
    intervals = tuple(map(tuple, np.array([[0.0, 0.5]])))
    guidance = tuple(np.array([1.0, 2.0]))
    config = GridConfig(steps=tuple(np.array([1])), guidance=guidance, guidance_intervals=intervals)
    for setting in config.sample_configs((2,)):
        written = json.loads(json.dumps(to_dict(setting)))
        assert from_dict(written, odelt.SampleConfig, "a row") == setting
        assert type(setting.guidance) is float


def test_numbers_of_steps_rise_however_they_are_given():
    config = GridConfig(steps=(64, 1, 8, 1), depths=(2,))
    assert [row.time.steps for row in config.sample_configs((2,))] == [1, 8, 64]


def test_how_a_run_samples_by_itself_is_a_row_if_it_is_guided_by_depth():
    config = GridConfig(steps=(1, 3))
    grid, time = config.sample_configs((2, 4)), odelt.FixedSteps(steps=8, solver="ab2")
    own = odelt.SampleConfig(time=time, depth_guidance=0.5)
    *others, last = config.sample_configs((2, 4), own)
    assert others == grid
    assert last == dataclasses.replace(own, depth=4, guide_depth=2)
    heun = odelt.FixedSteps(steps=2, solver="heun")
    assert config.sample_configs((2, 4), dataclasses.replace(own, length=heun))[-1].length == heun
    given = dataclasses.replace(config, length=time).sample_configs((2, 4), own)
    assert given[-1].length == time
    asked = GridConfig(steps=(8,), solvers=("ab2",), depth_guidance=(0.5,))
    assert asked.sample_configs((2, 4), own).count(last) == 1
    for alike in (
        None,
        odelt.SampleConfig(time=time),
        dataclasses.replace(own, depth=(2, 4) * 4),
        dataclasses.replace(own, depth=2),
    ):
        assert config.sample_configs((2, 4), alike) == grid


def test_solvers_grids_and_guidance_are_axes():
    config = GridConfig(
        steps=(2, 4),
        solvers=("euler", "ab3"),
        grids=("uniform", "cosine"),
        depths=(2,),
        guidance=(1.0, 3.0),
        guidance_intervals=((0.0, 1.0), (0.2, 0.7)),
    )
    rows = [
        dataclasses.replace(row(), config=sample, accepted=1.0 * sample.time.steps)
        for sample in config.sample_configs((2, 4))
    ]
    assert len(rows) == len(set(rows)) == 8 * 3
    assert {found.guidance for found in rows} == {"1", "3 from 0 to 1", "3 from 0.2 to 0.7"}
    assert {found.solver for found in rows} == {"euler", "ab3", "euler, cosine", "ab3, cosine"}
    assert [found.time for found in rows[4:8:2]] == [
        "2 time steps, ab3",
        "2 time steps, ab3, cosine",
    ]
    assert from_dict(to_dict(rows[-1]), Row, "a row") == rows[-1]


@pytest.mark.thorough
def test_samples_do_not_depend_on_the_batches(model, judge, tmp_path):
    """Of 25 samples, batches of 10 leave a part of one; each has adaptive steps of its own."""
    config = GridConfig(
        steps=(2,),
        adaptive=("bosh3",),
        tolerances=(1e-2,),
        depths=(2,),
        guidance=(1.5,),
        count=25,
        batch_size=25,
        per_example=True,
    )
    whole = measure(model, judge, config, tmp_path / "whole")
    parts = measure(model, judge, dataclasses.replace(config, batch_size=10), tmp_path)
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours.quality.frechet == pytest.approx(theirs.quality.frechet, rel=1e-4)
        assert ours.quality.accuracy == theirs.quality.accuracy
        assert (ours.evaluations, ours.blocks) == (theirs.evaluations, theirs.blocks)


def test_the_noise_of_a_sample_depends_on_its_index_alone(model):
    noise, labels, condition = inputs(model, 5, 8, 4)
    every = sample_noise(5, np.arange(12), (8, 8, 1))
    np.testing.assert_array_equal(noise, every[8:])
    assert labels.tolist() == condition.tolist() == [8, 9, 0, 1]
    assert np.abs(every - sample_noise(6, np.arange(12), (8, 8, 1))).min() > 0


@pytest.mark.parametrize(("at", "after"), [(40, [30, 10, 10, 10]), (60, [30, 30])])
def test_an_interrupted_grid_is_resumed(model, judge, tmp_path, at, after):
    """Interrupted in the second of two rows, after one or all of its three batches."""
    config = GridConfig(steps=(1, 2), depths=(2,), count=30, batch_size=10)
    whole = measure(model, judge, config, tmp_path / "whole")

    class Stopping(Silent):
        def advance(self, count=1):
            super().advance(count)
            if sum(self.new) == at:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM: the same call resumes from"):
        measure(model, judge, config, tmp_path, Stopping())
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 1
    assert len(list(tmp_path.glob(".*.partial.npz"))) == 1
    progress = Silent()
    resumed = measure(model, judge, config, tmp_path, progress)
    assert progress.new == after  # a known row, what was done of the other, its rest
    assert not list(tmp_path.glob(".*.partial.npz"))
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.quality == theirs.quality
        assert ours.evaluations == theirs.evaluations
        sheets = [
            (folder / "samples" / row.samples).read_bytes()
            for folder, row in ((tmp_path, ours), (tmp_path / "whole", theirs))
        ]
        assert sheets[0] == sheets[1]


def test_a_signal_is_obeyed_while_samples_are_compared(model, judge, tmp_path, monkeypatch):
    """One distance may take minutes; what was sampled is known to the next attempt."""
    config = GridConfig(steps=(1,), depths=(2,), count=30, batch_size=10)
    usual = signal.getsignal(signal.SIGTERM)

    def compare(state):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    monkeypatch.setattr("odelt_eqx.evaluation.measure.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(judge, "quality", compare)
        with pytest.raises(Interrupted, match="SIGTERM: the same call resumes from"):
            measure(model, judge, config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is usual
    progress = Silent()
    (row,) = measure(model, judge, config, tmp_path, progress)
    assert progress.new == [30]
    assert row.quality.frechet > 0


def test_a_row_is_known_by_all_that_it_depends_on(model, judge, tmp_path):
    config = GridConfig()

    def settings(model, config, train=judge.train, held_out=judge.held_out):
        other = Judge(judge.features, train, held_out, classes=10)
        return Meter(model, other, config, tmp_path).settings

    known = settings(model, config)
    assert known == settings(model, config)
    same, other = (ArraySource(digits("train").x + x, judge.train.condition) for x in (0, 1e-3))
    assert settings(model, config, train=same) == known
    assert settings(model, config, train=other)["data"] != known["data"]
    assert settings(model, config, held_out=other)["data"] != known["data"]
    for change in ({"count": 500}, {"seed": 1}, {"length": odelt.FixedSteps(solver="heun")}):
        assert settings(model, dataclasses.replace(config, **change)) != known
    assert settings(odelt.truncate(model, 2), config)["weights"] != known["weights"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (0,)}, r"steps must be positive numbers; got \(0,\)"),
        ({"steps": ()}, "there is nothing to measure: give steps, solvers and grids, or adaptive"),
        ({"guidance": ()}, "there is nothing to measure"),
        ({"likelihood": -1}, "likelihood must not be negative; got -1"),
        ({"count": 1}, "count must be at least 2; got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_a_grid_that_cannot_be_measured_is_refused(change, message):
    with pytest.raises(odelt.InputError, match=message):
        GridConfig(**change)


def test_what_is_asked_for_twice_is_measured_once():
    once = GridConfig(steps=(2, 1), depths=(4,), guidance=(1.0, 2.0), likelihood=1)
    twice = GridConfig(steps=(2, 1, 2), depths=(4, 4), guidance=(1.0, 2.0, 1.0), likelihood=1)
    assert twice == once
    assert len(twice.sample_configs((2, 4))) == 4


def test_a_batch_is_no_larger_than_the_samples_of_a_row():
    assert GridConfig(count=100).batch_size == 100
    assert GridConfig(count=100, batch_size=30).batch_size == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (3,)}, r"^depth must be one of 2, 4 \(in blocks\); got 3"),
        ({"guide_depths": (3,)}, r"^guide_depth must be one of 2, 4 \(in blocks\); got 3"),
        ({"guide_depths": (4,)}, "deeper than its guide; got depths 2, 4 and guide_depths 4"),
        ({"depths": (2,)}, "deeper than its guide; got depths 2 and guide_depths 2"),
    ],
)
def test_a_grid_that_does_not_fit_the_network_is_refused(change, message):
    with pytest.raises(odelt.InputError, match=message):
        GridConfig(depth_guidance=(1.0,), **change).check_depths((2, 4))
    GridConfig(depth_guidance=(1.0,)).check_depths((2, 4))


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "b/a.png", "..", "", r"..\a.png", "C:a.png", "a.txt"]
)
def test_a_row_whose_samples_are_elsewhere_is_refused(tmp_path, name):
    good = row()
    assert from_dict(to_dict(good), Row, "a file") == good
    with pytest.raises(odelt.InputError, match="samples must be the name of a PNG file"):
        dataclasses.replace(good, samples=name)
    store = Store(tmp_path / "rows.jsonl")
    store.measure({"at": 1}, Row, lambda: good)
    text = store.path.read_text()
    store.path.write_text(text.replace('"a.png"', json.dumps(name)))
    with pytest.raises(odelt.InputError, match=r"rows\.jsonl does not fit this version"):
        Store(store.path).measure({"at": 1}, Row, lambda: pytest.fail("it is known"))


def test_a_damaged_line_is_measured_again(tmp_path):
    store = Store(tmp_path / "rows.jsonl")
    store.measure({"at": 1}, Row, row)
    with store.path.open("a") as file:
        file.write('{"settings": {"at": 2}, "measu')
    assert Store(store.path).known([{"at": 1}, {"at": 2}]).tolist() == [True, False]


def test_one_process_measures_in_a_folder_at_a_time(tmp_path):
    with lock_results(tmp_path / "results"):
        message = r"another process is measuring in .*results; wait for it, or give another --out"
        with pytest.raises(odelt.InputError, match=message), lock_results(tmp_path / "results"):
            pytest.fail("it is locked")
        with lock_results(tmp_path / "others"):
            pass
    with lock_results(tmp_path / "results"):
        pass


@pytest.fixture
def measured(tmp_path):
    """A grid of four rows."""
    rows = (row(2, 1, 9.0, 1.0, 10), row(2, 4, 5.0, 4.0, 10), row(4, 1, 7.0, 2.0, 20))
    return write_grid(tmp_path, (*rows, row(4, 4, 5.0, 8.0, 20)))


def test_the_caption_says_what_numbers_by_inception_are_and_of_how_many_samples(measured):
    by_all = Quality(9.0, second=1.0, spatial=2.0, inception_score=30.0, inception_score_error=0.5)
    changes = {"features": "inception-adm", "second": "edges", "bounds": Bounds(by_all, by_all)}
    changes |= {"reference": "given statistics and 10,000 given images (0123abcd)"}
    grid = dataclasses.replace(load_grid(measured), **changes)
    grid = dataclasses.replace(grid, real_count=10_000, given_images=True)
    header, *_, real, _ = grid.table()
    found = dict(zip(header, real, strict=True))
    assert found["FID (ADM), 10 samples to ?"] == "9.00"
    assert found["sFID (ADM)"] == "2.00"
    assert found["Inception score"] == "30.00 ± 0.50"
    assert found["Fréchet distance (edges)"] == "1.00"
    for words in (
        "FID (ADM) and sFID (ADM): to given statistics and 10,000 given images (0123abcd), ±",
        "By Inception v3, images resized as ADM's evaluator does: FID (ADM): Fréchet distance of "
        "the 2,048 pooled features; sFID (ADM): that of 2,023 spatial ones; Inception score: of "
        "the classes, the mean over splits of 5,000 samples.",
        "Published numbers are of 50,000 samples: those of 10 are worse.",
        "KID (ADM): of the first 10 samples to 5,000 real ones; precision and recall: of all 10 "
        "and all 10,000.",
        "Fréchet distance (edges): to given images, the second judge",
    ):
        assert words in grid.note()
    assert "Published" not in dataclasses.replace(grid, count=50_000).note()
    plain = load_grid(measured)
    assert "Inception" not in plain.note() + str(plain.table())
    assert "precision and recall: of the first 10 samples." in plain.note()
    few = dataclasses.replace(plain, real_count=7)
    assert "the first 10 samples to 7 real ones; precision and recall: of 7 of each" in few.note()


def test_the_caption_says_why_a_column_is_empty(measured):
    grid = load_grid(measured)
    assert "Class accuracy: empty, as there are no classes." in grid.note()
    bare = dataclasses.replace(grid.rows[0], quality=Quality(9.0))
    few = dataclasses.replace(grid, rows=(bare,))
    assert "precision and recall: empty, as they need 20 samples of each." in few.note()
    exact = dataclasses.replace(grid, bounds=Bounds(Quality(0.0), Quality(9.0)))
    assert "divided by that of as many other real samples, 0: empty." in exact.note()
    full = Bounds(Quality(1.0, accuracy=0.9), Quality(9.0))
    assert "empty" not in dataclasses.replace(grid, bounds=full).note()


def test_the_best_row_within_a_budget_is_recommended(measured):
    def chosen(**budget):
        config = recommend(measured, **budget).config
        return config.depth, config.time.steps

    assert chosen(milliseconds=1.5) == (2, 1)
    assert chosen(milliseconds=3) == (4, 1)
    assert chosen(milliseconds=100) == (2, 4)  # as good as the last one, and faster
    assert chosen(memory=10) == (2, 4)
    assert chosen(milliseconds=3, memory=15) == (2, 1)
    found = odelt.recommend(measured / "grid.json", memory=10)
    assert found.config == odelt.SampleConfig(time=odelt.FixedSteps(steps=4), depth=2, guidance=1.5)
    assert str(found) == (
        "depth 2, euler, 4 time steps, guidance 1.5: Fréchet distance (pixels) 5.00 at 4 ms per "
        "sample on here"
    )


@pytest.mark.parametrize(("evaluated", "best"), [(1, 2.0), (2, 2.0), (3, 1.0)])
def test_what_was_measured_of_the_newer_checkpoint_answers(tmp_path, evaluated, best):
    """Of the same one, what was searched, here at step 2."""
    write_grid(tmp_path / "search", [row(distance=2.0)], step=2)
    write_grid(tmp_path, [row(distance=1.0)], step=evaluated)
    assert recommend(tmp_path, memory=10).row.quality.frechet == best


def test_a_budget_that_buys_nothing_is_one_line(measured, tmp_path):
    with pytest.raises(odelt.InputError, match=r"fastest takes 1 milli.* smallest needs 10 bytes"):
        recommend(measured, milliseconds=0.5)
    with pytest.raises(odelt.InputError, match="give milliseconds, memory, or both"):
        recommend(measured)
    with pytest.raises(odelt.InputError, match=r"there is no grid .*nowhere: measure it by"):
        recommend(tmp_path / "nowhere", memory=1)
    for text in ("{", "[]", json.dumps({"rows": []})):
        (tmp_path / "grid.json").write_text(text)
        match = "is not a measured grid|does not fit this version"
        with pytest.raises(odelt.InputError, match=match) as caught:
            recommend(tmp_path, memory=1)
        assert "\n" not in str(caught.value)
