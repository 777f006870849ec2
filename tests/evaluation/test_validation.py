"""Held-out losses by bin."""

import json

import numpy as np
import pytest
from PIL import Image

from odelt_eqx.evaluation.validation import binned, validate


def test_each_draw_counts_in_the_bin_of_its_time_and_of_its_step():
    """Steps 0 and 1 with errors 10 and 20 stay out of the bins of time."""
    times = np.array([0.0, 0.1, 0.124, 0.99, 0.5, 0.5])
    steps = np.array([3.0, 3.0, 3.0, 3.0, 0.0, 1.0])
    errors = np.array([1.0, 2.0, 3.0, 5.0, 10.0, 20.0])
    found = {(loss.axis, loss.start): loss for loss in binned(4, times, steps, errors)}
    assert {key: (loss.mean, loss.count) for key, loss in found.items()} == {
        ("time", 0.0): (2.0, 3),
        ("time", 0.875): (5.0, 1),
        ("step", 0.0): (10.0, 1),
        ("step", 1.0): (20.0, 1),
        ("step", 3.0): (2.75, 4),
    }
    np.testing.assert_allclose(found["time", 0.0].error, 1 / np.sqrt(3))


def test_a_flow_without_steps_has_bins_of_time_alone():
    losses = binned(2, np.array([0.3, 0.9]), np.array([5.0, 5.0]), np.array([1.0, 2.0]))
    assert [(loss.axis, loss.start) for loss in losses] == [("time", 0.25), ("time", 0.875)]


@pytest.mark.thorough
def test_a_run_is_validated_at_every_depth(tiny_run, tmp_path):
    table, data, figure = validate(tiny_run, tmp_path)
    losses = json.loads(data.read_text())
    assert {loss["depth"] for loss in losses} == {2, 4}
    for depth in (2, 4):
        counts = {"time": 0, "step": 0}
        for loss in losses:
            counts[loss["axis"]] += loss["count"] if loss["depth"] == depth else 0
        assert counts["step"] >= 4096 > counts["time"] > 3000
    assert table.read_text().count("\n| 4 |") == 2
    assert min(Image.open(figure).size) > 300


def test_little_time_means_fewer_draws(tiny_run, tmp_path):
    _, data, _ = validate(tiny_run, tmp_path, seconds=0.0)
    losses = json.loads(data.read_text())
    for depth in (2, 4):
        own = [loss for loss in losses if loss["depth"] == depth and loss["axis"] == "step"]
        assert sum(loss["count"] for loss in own) == 360  # a batch of all that is held out


def test_a_run_on_vectors_is_validated(checkerboard, tmp_path):
    table, data, _ = validate(checkerboard, tmp_path)
    losses = json.loads(data.read_text())
    assert {(loss["depth"], loss["axis"]) for loss in losses} == {(1, "time"), (2, "time")}
    assert "step index" not in table.read_text()
