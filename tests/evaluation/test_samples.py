"""Pictures on request, as sheets, arrays and film strips."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.evaluation.samples import SampleConfig, draw_samples


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
    more = np.load(draw_samples(tiny_run, SampleConfig(count=9, out=tmp_path / "more"))[0][1])
    np.testing.assert_array_equal(more["noise"][:4], first["noise"])  # each picture has its own
    assert np.abs(first["images"] - draw("d", depth="plain")["images"]).max() > 0


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
