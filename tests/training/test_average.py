"""Averages by a power of time, and those of any width that their snapshots give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.training.average import PowerAverage, Profile, combine, exponent_of
from odelt_eqx.training.info import describe
from odelt_eqx.training.train import train
from odelt_eqx.training.weights import convert
from tests.training.conftest import POINTS_RUN
from tests.training.test_run import PowerCutError, cut_power_after
from tests.training.test_teacher import assert_same

STEPS, EVERY, WIDTHS = 320, 10, (0.05, 0.1)
RUN = dataclasses.replace(POINTS_RUN, snapshot_every=2)


def share_of_step(width, steps):
    """How much each step counts: the integral of the power of time over it."""
    edges = np.arange(steps + 1) / steps
    return np.diff(edges ** (exponent_of(width) + 1))


@pytest.mark.parametrize("width", [0.01, 0.05, 0.2, 12**-0.5])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    shares, time = share_of_step(width, 20_000), (np.arange(20_000) + 0.5) / 20_000
    mean = shares @ time
    assert np.sqrt(shares @ (time - mean) ** 2) == pytest.approx(width, rel=1e-4)


@pytest.fixture(scope="module")
def walk():
    """Weights on a random walk, and what training stores of them."""
    weights = np.random.default_rng(0).normal(size=(STEPS, 100)).cumsum(0)

    @jax.jit
    def averages(weights):
        start = tuple(PowerAverage(jnp.zeros(100), width) for width in WIDTHS)

        def step(average, now):
            moved = tuple(each.update(now[0], True, now[1]) for each in average)
            return moved, jnp.stack([each.network for each in moved])

        return jax.lax.scan(step, start, (weights, jnp.arange(1, STEPS + 1)))[1]

    return weights, np.asarray(averages(jnp.asarray(weights, jnp.float32)))


def test_averages_are_those_of_the_closed_form(walk):
    weights, averages = walk
    for steps in (1, 2, 50, STEPS):
        for width, found in zip(WIDTHS, averages[steps - 1], strict=True):
            np.testing.assert_allclose(
                found, share_of_step(width, steps) @ weights[:steps], atol=1e-3
            )


@pytest.mark.parametrize(
    ("width", "most"),
    [(0.03, 0.012), (0.05, 0), (0.07, 0.001), (0.1, 0), (0.15, 3e-3), (0.2, 0.01)],
)
def test_an_average_of_any_width_is_made_of_snapshots_of_two(walk, width, most):
    """The error is no more than that of the profile, by Cauchy and Schwarz."""
    weights, averages = walk
    at = range(EVERY, STEPS + 1, EVERY)
    shares, error = combine([Profile(step, WIDTHS) for step in at], width)
    assert error <= most
    found = np.einsum("sw,swn->n", shares, averages[EVERY - 1 :: EVERY])
    profile = share_of_step(width, STEPS)
    bound = error * np.linalg.norm(profile) * np.linalg.norm(weights, axis=0)
    assert (np.abs(found - profile @ weights) <= bound + 2e-3).all()
    if not most:
        np.testing.assert_array_equal(found, averages[-1][WIDTHS.index(width)])


@pytest.mark.thorough
def test_what_a_run_stores_is_what_an_uninterrupted_one_does(points_run, tmp_path, monkeypatch):
    """A snapshot that comes after the last checkpoint is made again."""
    whole = train(RUN, tmp_path / "whole")
    run = tmp_path / "cut"
    with monkeypatch.context() as patch:
        cut_power_after(5, patch)
        with pytest.raises(PowerCutError):
            train(RUN, run)
    later = run / "snapshots" / "4"
    assert later.is_dir()
    before = later.stat().st_mtime_ns
    resumed = train(RUN, run, resume=True)
    assert_same(resumed, whole)
    assert later.stat().st_mtime_ns > before
    wide = [odelt.load_average(r, 0.08, 4) for r in (run, tmp_path / "whole")]
    assert_same(*wide)
    for average in whole.averages:
        assert_same(odelt.load_average(run, average.width), average.network)
    assert "\n3          2 to 6  " in describe(run)
    assert_same(whole.model, odelt.load(points_run, "model"))

    convert(run, tmp_path / "wide.safetensors", RUN, average=(0.08, 4))
    with pytest.warns(UserWarning, match=r"width 0\.02 differs by .*% from what the 3 snapshots"):
        odelt.load_average(run, 0.02)
    assert_same(odelt.load_safetensors(tmp_path / "wide.safetensors"), wide[0])
    with pytest.raises(odelt.InputError, match="no snapshot of step 3; there are those of 2, 4, 6"):
        odelt.load_average(run, 0.08, 3)
    with pytest.raises(odelt.InputError, match=r"must lie in \(0, 0\.2887\]; got 0\.5"):
        odelt.load_average(run, 0.5)
    for path in (later / "averages").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(odelt.InputError, match=r"snapshot of step 4 cannot be read .*snapshots/4"):
        odelt.load_average(run, 0.08)


def test_a_run_without_snapshots_is_as_it_was(points_run):
    assert not (points_run / "snapshots").exists()
    assert not list(points_run.glob("checkpoints/*/averages"))
    with pytest.raises(
        odelt.InputError, match="no snapshots of averages: train with --snapshot-ev"
    ):
        odelt.load_average(points_run, 0.1)


@pytest.mark.parametrize("widths", [(), (0.1, 0.1), (0.5,), (0.0,)])
def test_widths_that_no_average_has_are_refused(widths):
    with pytest.raises(odelt.InputError, match="average_widths must"):
        dataclasses.replace(RUN.optimizer, average_widths=widths)
