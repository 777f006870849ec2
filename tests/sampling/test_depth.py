"""The depth while sampling: guidance by it, one for every step, one that a tolerance chooses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.ode import LengthStats
from odelt_eqx.sampling import flow
from tests.conftest import TINY
from tests.nn.test_anytime import awake

X = jnp.zeros((3, 2))
EULER, LATE = odelt.FixedSteps(4), odelt.FixedSteps(8)


class Ladder(odelt.Network):
    """A network whose velocity at depth d is d^2, and without a condition minus that."""

    anytime: bool = True
    condition_type: odelt.Vector | None = None
    shape, depths, flow_index, length = (2,), (1, 2, 3), 0, odelt.FixedSteps()

    def velocity(self, inputs):
        depth, x = inputs.depth, inputs.x
        nulls = False if inputs.condition is None else jnp.isnan(inputs.condition[:, :1])
        at = lambda d: jnp.where(nulls, -1.0, 1.0) * jnp.reshape(jnp.asarray(d) ** 2.0, (-1, 1))
        stats = LengthStats.zeros(len(x))
        ones = jnp.ones(len(x))
        blocks = jnp.asarray(depth[-1] if isinstance(depth, tuple) else depth) * ones
        stats = dataclasses.replace(stats, solves=ones, blocks=blocks, depth=blocks)
        if isinstance(depth, tuple):
            return jnp.stack([at(d) * jnp.ones_like(x) for d in depth]), stats
        return at(depth) * jnp.ones_like(x), stats


@pytest.mark.parametrize("anytime", [True, False])
@pytest.mark.parametrize(
    "time",
    [
        EULER,
        pytest.param(odelt.Adaptive(), marks=pytest.mark.slow),
        odelt.Adaptive(per_example=True),
    ],
)
def test_the_velocity_moves_on_from_that_of_the_guide(anytime, time):
    run = lambda **options: odelt.sample(Ladder(anytime), X, time=time, **options)
    close = lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-4)
    close(run(depth_guidance=2.0), 9 + 2 * (9 - 1))
    close(run(depth_guidance=0.5, guide_depth=2), 9 + 0.5 * (9 - 4))
    close(run(depth=2, depth_guidance=1.0), 4 + 3)
    weights = np.array([0.0, 1.0, 3.0])
    close(run(depth_guidance=weights), (9 + weights * 8)[:, None] * np.ones(2))
    depths = np.array([1, 2, 3])  # the first is no deeper than the guide: it has none
    for own in (depths, jnp.asarray(depths)):
        close(run(depth_guidance=1.0, depth=own)[:, 0], [1, 4 + 3, 9 + 8])


def test_the_smallest_depth_has_no_guide():
    run = lambda **options: odelt.sample(Ladder(), X, time=EULER, depth=1, **options)
    np.testing.assert_array_equal(run(depth_guidance=1.0), run())


def test_a_network_that_is_not_told_its_depth_pays_nothing_for_its_guide():
    for anytime, blocks, evaluations in ((True, 3, 1), (False, 3 + 1, 2)):
        _, stats = odelt.sample_with_stats(Ladder(anytime), X, time=EULER, depth_guidance=1.0)
        np.testing.assert_array_equal(stats.blocks, 4 * blocks)
        np.testing.assert_array_equal(stats.evaluations, 4 * evaluations)


@pytest.mark.parametrize("anytime", [True, False])
def test_the_guide_may_act_between_two_times_alone(anytime):
    options = {"time": LATE, "depth_guidance": 1.0, "depth_guidance_interval": (0.25, 0.625)}
    found, stats = odelt.sample_with_stats(Ladder(anytime), X, **options)
    np.testing.assert_allclose(found, 9 + 0.375 * 8, rtol=1e-6)
    np.testing.assert_array_equal(stats.blocks, 8 * 3 + (0 if anytime else 3 * 1))
    adaptive = odelt.sample(Ladder(anytime), X, **options | {"time": odelt.Adaptive()})
    np.testing.assert_allclose(adaptive, 9 + 0.375 * 8, atol=1e-3)


@pytest.mark.parametrize("anytime", [True, False])
def test_it_acts_on_the_velocity_that_classes_guide(anytime):
    """Classes first: 9 becomes -9 + w 18, and 1 becomes -1 + 2 w."""
    network, condition = Ladder(anytime, odelt.Vector(1)), jnp.ones((3, 1))
    found = odelt.sample(network, X, condition, guidance=1.5, depth_guidance=2.0)
    np.testing.assert_allclose(found, 18 + 2 * (18 - 2), rtol=1e-6)
    both = {"guidance_interval": (0.0, 0.5), "depth_guidance_interval": (0.25, 1.0)}
    found = odelt.sample(
        network, X, condition, time=EULER, guidance=1.5, depth_guidance=2.0, **both
    )
    expected = np.mean([18, 18 + 2 * 16, 9 + 2 * 8, 9 + 2 * 8])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "time",
    [EULER, odelt.FixedSteps(4, "ab2"), odelt.FixedSteps(4, "ab3", grid="cosine")],
    ids=str,
)
@pytest.mark.parametrize("anytime", [True, False])
def test_every_step_may_have_a_depth_of_its_own(anytime, time):
    depths = (1, 3, 2, 3)
    found, stats = odelt.sample_with_stats(Ladder(anytime), X, time=time, depth=depths)
    np.testing.assert_array_equal(stats.blocks, sum(depths))
    np.testing.assert_allclose(stats.depth, np.mean(depths))
    if time.solver == "euler":
        np.testing.assert_allclose(found, np.mean([1, 9, 4, 9]), rtol=1e-6)
    back = odelt.invert(Ladder(anytime), X, time=EULER, depth=list(depths))
    np.testing.assert_allclose(back, -np.mean([1, 9, 4, 9]), rtol=1e-6)
    guided = odelt.sample(Ladder(anytime), X, time=EULER, depth=depths, depth_guidance=1.0)
    np.testing.assert_allclose(guided, np.mean([1, 17, 7, 17]), rtol=1e-6)


def test_the_depth_of_a_step_is_that_of_the_network():
    """Steps of a transformer at depths of their own are those of calls, one after another."""
    model, depths = awake(TINY, length_embedding="none"), (2, 4, 2)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    labels, time = jnp.array([1, 2]), odelt.FixedSteps(times=(0.0, 0.25, 0.5, 1.0))
    expected = x
    for t, length, depth in zip((0.0, 0.25, 0.5), (0.25, 0.25, 0.5), depths, strict=True):
        index = -np.log2(length)
        expected = expected + length * model(t, expected, index, labels, depth=depth)
    found = odelt.sample(model, x, labels, time=time, depth=depths)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": (1, 2)}, r"there must be a depth for each of 4 steps; got \(1, 2\)"),
        ({"depth": (1, 2, 3, 4)}, "depth must be one of 1, 2, 3"),
        ({"depth": (1,) * 4, "time": odelt.FixedSteps(4, "heun")}, "which evaluate once a step"),
        ({"depth": (1,) * 4, "time": odelt.Adaptive()}, "needs fixed steps of one of the solvers"),
        ({"depth_guidance": 1.0, "depth": 1, "guide_depth": 1}, "shallower than depth 1; got 1"),
        ({"depth_guidance": 1.0, "guide_depth": 3}, "must be shallower than depth 3; got 3"),
        ({"depth_guidance": 1.0, "guide_depth": 4}, "depth must be one of 1, 2, 3"),
        ({"depth_guidance": np.ones(2)}, r"depth_guidance must be a number or have shape \(3,\)"),
        ({"depth_guidance_interval": (0.5, 0.2)}, "depth_guidance_interval must be two rising"),
        ({"depth_tolerance": 0.0}, "depth_tolerance must be positive; got 0"),
        ({"depth_tolerance": 0.1, "depth": np.array([1, 2, 3])}, "up to one number for all"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(odelt.InputError, match=message):
        odelt.sample(Ladder(), X, **{"time": EULER} | options)


def test_a_network_that_ignores_a_tolerance_is_refused():
    """Its samples would be those of the full depth, and nobody would know."""
    for options in ({}, {"depth_guidance": 1.0}, {"depth": 2, "time": odelt.Adaptive()}):
        with pytest.raises(odelt.InputError, match=r"must pass inputs\.tolerance to odelt\.integr"):
            odelt.sample(Ladder(), X, depth_tolerance=0.1, **options)
    with pytest.raises(odelt.InputError, match="ignores a tolerance"):
        Ladder()(0.5, X, 0, tolerance=0.1)


def test_the_way_back_and_the_likelihood_leave_the_guide_out_and_say_so():
    guided = odelt.SampleConfig(time=EULER, depth_guidance=2.0)
    with pytest.warns(UserWarning, match="the way back leaves out guidance by depth"):
        np.testing.assert_allclose(odelt.invert(Ladder(), X, None, guided), -9, rtol=1e-6)
    with pytest.warns(UserWarning, match="the likelihood leaves out guidance by depth"):
        found = odelt.log_likelihood(Ladder(), X, depth_guidance=1.0)
    np.testing.assert_allclose(found.log_density, odelt.log_likelihood(Ladder(), X).log_density)


NOISE = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
LABELS = jnp.array([3, 7, 1, 2])


@pytest.fixture(scope="module")
def model():
    return awake(dataclasses.replace(TINY, depth=6), length_embedding="none")


def test_weights_tolerances_and_intervals_compile_nothing_new(model):
    def compiled(**options):
        before = flow.solve_flow._cached._cache_size()
        odelt.sample(model, NOISE, LABELS, time=odelt.FixedSteps(2, "ab2"), **options)
        return flow.solve_flow._cached._cache_size() - before

    options = {"depth_guidance": 1.0, "depth_guidance_interval": (0.0, 0.5)}
    assert compiled(**options, depth_tolerance=0.1) == 1
    options = {"depth_guidance": 2.5, "depth_guidance_interval": (0.1, 0.9)}
    assert compiled(**options, depth_tolerance=0.3) == 0


def test_a_tolerance_saves_blocks_and_tells_its_error_from_that_of_time(model):
    def run(tolerance, time):
        config = odelt.SampleConfig(time=time, depth_tolerance=tolerance)
        return odelt.sample_with_stats(model, NOISE, LABELS, config)

    fine = odelt.FixedSteps(128, "heun")
    exact, full = run(None, fine)
    np.testing.assert_array_equal(full.depth_error, 0)
    assert (full.time_error > 0).all()
    distances, blocks = [], []
    for tolerance in (10.0, 0.3, 1e-6):
        samples, stats = run(tolerance, fine)
        distances.append(float(jnp.abs(samples - exact).mean()))
        blocks.append(stats.blocks.mean())
        assert (stats.depth_error > 0).all()
    assert blocks[0] == 256 * 4 <= blocks[1] < blocks[2] == full.blocks.mean()
    assert distances[0] >= distances[1] > distances[2]
    assert distances[2] < 1e-5
    coarse = run(0.3, odelt.Adaptive(1e-2, 1e-2))[1]
    accurate = run(0.3, odelt.Adaptive(1e-4, 1e-4))[1]
    assert (coarse.time_error > accurate.time_error).all()
    np.testing.assert_allclose(coarse.depth_error, accurate.depth_error, rtol=0.3)


def test_a_tolerance_may_be_guided(model):
    """Where nobody stops early, it is what the guide does without a tolerance."""
    options = {"depth_guidance": 1.0, "time": odelt.FixedSteps(3), "guidance": 1.5}
    plain, stats = odelt.sample_with_stats(model, NOISE, LABELS, **options)
    held, same = odelt.sample_with_stats(model, NOISE, LABELS, depth_tolerance=1e-9, **options)
    np.testing.assert_allclose(held, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(same.blocks, stats.blocks)
    _, early = odelt.sample_with_stats(model, NOISE, LABELS, depth_tolerance=10.0, **options)
    np.testing.assert_array_equal(early.depth, 4)
