"""The axes of figures."""

import dataclasses

import numpy as np
import pytest

from odelt_eqx.data.source import ArraySource
from odelt_eqx.evaluation import figures, search
from odelt_eqx.evaluation.features import Pixels
from odelt_eqx.evaluation.grid import Bounds, load_grid
from odelt_eqx.evaluation.quality import Judge, Quality
from tests.evaluation.makers import row, write_grid


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    found = []
    for module in (figures, search):
        monkeypatch.setattr(module, "save_figure", lambda figure, _: found.append(figure))
    return found


@pytest.mark.parametrize("found", [False, True])
def test_axes_show_a_single_row(drawn, tmp_path, found):
    """matplotlib makes the ends of a logarithmic axis equal, or nearly so, for a single value."""
    single = dataclasses.replace(row(milliseconds=23.76616038684932), evaluations=73.0, blocks=73.0)
    single = dataclasses.replace(single, quality=Quality(9.0, accuracy=0.5))
    grid = load_grid(write_grid(tmp_path, [single]))
    bounds = Bounds(Quality(1.0, accuracy=0.9), Quality(9.0, accuracy=0.1))
    figures.save_curves(dataclasses.replace(grid, bounds=bounds), tmp_path)
    published, others = ([], [single]) if found else ([single], [])
    search.save_frontier(published, others, ["distance"], tmp_path)
    assert [len(figure.axes) for figure in drawn] == [4, 2]
    for figure in drawn:
        figure.draw_without_rendering()
        for axis in figure.axes:
            ends = axis.get_xlim(), axis.get_ylim()
            assert np.isfinite(ends).all()
            assert all(high - low > 0.01 * high for low, high in ends)


def test_legends_of_many_depths_fit(drawn, tmp_path):
    rows = [row(depth=depth) for depth in range(1, 25)]
    figures.save_curves(load_grid(write_grid(tmp_path, rows)), tmp_path)
    search.save_frontier(rows, rows, ["distance"], tmp_path)
    for figure in drawn:
        figure.draw_without_rendering()
        low, high = figure.legends[0].get_window_extent().intervalx
        assert figure.bbox.x0 <= low < high <= figure.bbox.x1


@pytest.mark.parametrize(
    ("low", "high"), [(1.1, 1.9), (4.7, 7.6), (0.3, 2.1), (6.1, 640), (1, 1e6)]
)
def test_a_logarithmic_axis_has_numbers_wherever_it_ends(low, high):
    figure = figures.new_figure(4, 3)
    axis = figure.subplots()
    axis.set(xscale="log", xlim=(low, high))
    figures.number_log_axis(axis.xaxis)
    figure.draw_without_rendering()
    shown = [
        float(label.get_text())
        for label, tick in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True)
        if low <= tick <= high
    ]
    assert 2 <= len(shown) <= 9
    assert all(low <= number <= high for number in shown)


def test_long_names_of_classes_fit_the_grid(drawn, tmp_path):
    names = tuple(f"a long name of class {i}, of many words" for i in range(10))
    images, labels = np.zeros((20, 8, 8, 1), np.float32), np.arange(20) % 10
    source = ArraySource(images, labels, class_names=names)
    judge = Judge(Pixels().open((8, 8, 1)), source, source, classes=10)
    grid = load_grid(write_grid(tmp_path, [row()]))
    figures.save_grid_samples(grid, judge, tmp_path)
    (figure,) = drawn
    figure.draw_without_rendering()
    texts = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(figure.bbox.x0 <= box.x0 and figure.bbox.y0 <= box.y0 for box in texts)
