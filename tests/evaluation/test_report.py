"""The judge, the map and its files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.data import digits
from odelt_eqx.evaluation.grid import GridConfig, measure
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.samples import SampleConfig, draw_samples
from odelt_eqx.images import tile


@pytest.fixture(scope="module")
def judge():
    return Judge(digits("train"), digits("held-out"))


def test_the_judge_knows_real_digits_from_noise(judge):
    held_out, train = digits("held-out"), digits("train")
    real = judge(held_out.images, held_out.labels)
    assert real.accuracy > 0.97
    assert real.frechet == pytest.approx(0, abs=1e-6)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (360, 8, 8, 1)))
    worst = judge(noise, held_out.labels)
    assert worst.accuracy < 0.2
    assert worst.frechet > 20 * judge(train.images[:360], train.labels[:360]).frechet


def test_the_judge_counts_the_class_that_was_asked_for(judge):
    train = digits("train")
    wrong = (train.labels + 1) % 10
    assert judge(train.images, wrong).accuracy < 0.02


def test_tiles_lie_in_rows():
    images = np.stack([np.full((2, 2, 1), v, np.float32) for v in (-1, 0, 1)])
    sheet = tile(images, 2)[..., 0]
    assert sheet.shape == (7, 7)
    assert [sheet[1, 1], sheet[1, 4], sheet[4, 1], sheet[4, 4]] == [0, 0.5, 1, 1]


def test_the_map_has_a_cell_for_each_depth_and_step_count(model, judge):
    config = GridConfig(
        steps=(1, 3), solvers=("bosh3",), tolerances=(1e-1,), count=20, batch_size=10
    )
    cells = list(measure(model, judge, config))
    fixed = [
        (c.depth, c.time.steps, c.evaluations, c.blocks) for c in cells if c.time.solver == "euler"
    ]
    assert fixed == [(d, steps, steps, d * steps) for d in (2, 4) for steps in (1, 3)]
    adaptive = [c for c in cells if c.time.solver == "bosh3"]
    assert [c.depth for c in adaptive] == [2, 4]
    assert all(c.blocks == c.depth * c.evaluations for c in adaptive)
    assert all(cell.milliseconds > 0 for cell in cells)
    assert cells[0].milliseconds * 10 < 300  # a batch of 10; compiling alone takes a second


def test_evaluation_writes_a_table_its_data_and_two_pictures(tiny_run, tmp_path):
    config = GridConfig(steps=(1, 2), count=100, batch_size=50, likelihood=1)
    grid, markdown, data, curves = evaluate(tiny_run, config, tmp_path / "results")
    rows = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * 2 + 2 + 2 + 2
    document = json.loads(data.read_text())
    assert len(document["cells"]) == 4
    assert document["features"] == "pixels"
    assert [row["depth"] for row in document["likelihood"]] == [2, 4]
    assert all(row["bits"] > 0 and row["error"] > 0 for row in document["likelihood"])
    for picture in (grid, curves):
        assert min(Image.open(picture).size) > 300


def test_a_depth_the_run_has_not_is_refused_before_anything_is_measured(tiny_run):
    with pytest.raises(odelt.InputError, match="depth must be one of 2, 4"):
        evaluate(tiny_run, GridConfig(depths=(3,)))


def test_samples_are_a_sheet_and_arrays_and_repeat_by_seed(tiny_run, tmp_path):
    def draw(name, **changes):
        config = SampleConfig(labels=(3, 7), count=4, out=tmp_path / name, **changes)
        (sheet, arrays), _ = draw_samples(tiny_run, config)
        assert Image.open(sheet).size[0] > 100
        return np.load(arrays)

    first, again, other = draw("a"), draw("b"), draw("c", seed=1)
    assert first["images"].shape == (4, 8, 8, 1)
    assert first["labels"].tolist() == [3, 7, 3, 7]
    np.testing.assert_array_equal(first["images"], again["images"])
    assert np.abs(first["images"] - other["images"]).max() > 0.1
    assert np.abs(first["images"] - draw("d", depth="plain")["images"]).max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (0,)}, r"steps must be positive numbers; got \(0,\)"),
        ({"steps": ()}, "there is nothing to measure: give steps, or solvers and tolerances"),
        ({"likelihood": -1}, "likelihood must be a number of probes; got -1"),
        ({"count": 100, "batch_size": 30}, "count must be a multiple of batch_size 30; got 100"),
    ],
)
def test_a_map_that_cannot_be_measured_is_refused(change, message):
    with pytest.raises(odelt.InputError, match=message):
        GridConfig(**change)


def test_a_film_strip_and_a_way_back_from_images(tiny_run, tmp_path):
    time = odelt.FixedSteps(steps=32, solver="heun")
    there = SampleConfig(
        count=4, time=time, depth=2, trajectory=(0.0, 0.5, 1.0), out=tmp_path / "there"
    )
    paths, _ = draw_samples(tiny_run, there)
    assert [path.name for path in paths] == ["there.png", "there.npz", "there-strip.png"]
    first = np.load(paths[1])
    assert first["states"].shape == (3, 4, 8, 8, 1)
    np.testing.assert_allclose(first["states"][0], first["noise"], atol=1e-6)

    back = SampleConfig(time=time, depth=2, from_images=paths[1], out=tmp_path / "back")
    second = np.load(draw_samples(tiny_run, back)[0][1])
    np.testing.assert_allclose(second["noise"], first["noise"], atol=1e-2)
    np.testing.assert_allclose(second["images"], first["images"], atol=1e-2)
    np.testing.assert_array_equal(second["labels"], first["labels"])

    other = dataclasses.replace(back, labels=(7,), out=tmp_path / "other")
    assert np.load(draw_samples(tiny_run, other)[0][1])["labels"].tolist() == [7] * 4


@pytest.mark.parametrize(("labels", "count"), [((), 100), ((3,), 100), (tuple(range(9)) * 4, 36)])
def test_a_sheet_is_a_picture_that_fits_a_screen(tiny_run, tmp_path, labels, count):
    config = SampleConfig(labels=labels, count=count, depth=2, out=tmp_path / "sheet")
    width, height = Image.open(draw_samples(tiny_run, config)[0][0]).size
    assert 200 < width <= 640
    assert 100 < height <= 1280


@pytest.mark.parametrize("content", [b"", b"PK nonsense"])
def test_a_file_that_holds_no_images_is_one_line(tiny_run, tmp_path, content):
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    for file in (path, tmp_path / "nothing.npz"):
        with pytest.raises(odelt.InputError, match="holds no images and labels to start from"):
            draw_samples(tiny_run, SampleConfig(from_images=file))
