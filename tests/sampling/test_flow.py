"""Sampling: what is compiled, what is counted, what is refused."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.sampling import flow
from tests.conftest import TINY
from tests.nn.test_anytime import awake

NOISE = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
LABELS = jnp.array([3, 7])


def test_steps_and_tolerances_and_guidance_compile_nothing_new(model):
    def compiled(**changes):
        before = flow.solve_flow._cached._cache_size()
        odelt.sample(model, NOISE, LABELS, depth=2, **changes)
        return flow.solve_flow._cached._cache_size() - before

    compiled(time=odelt.FixedSteps(2), guidance=1.5)
    assert compiled(time=odelt.FixedSteps(5), guidance=2.5) == 0
    compiled(time=odelt.Adaptive(rtol=1e-2, atol=1e-2))
    assert compiled(time=odelt.Adaptive(rtol=1e-1, atol=1e-3)) == 0


@pytest.mark.parametrize(
    ("time", "guidance", "evaluations"),
    [
        (odelt.FixedSteps(3), 1.0, 3),
        (odelt.FixedSteps(3), 1.5, 6),
        (odelt.FixedSteps(3, "heun"), 0.0, 6),
    ],
)
def test_evaluations_are_counted(model, time, guidance, evaluations):
    _, stats = odelt.sample_with_stats(model, NOISE, LABELS, time=time, depth=2, guidance=guidance)
    np.testing.assert_array_equal(stats.accepted, 3)
    np.testing.assert_array_equal(stats.rejected, 0)
    np.testing.assert_array_equal(stats.evaluations, evaluations)
    np.testing.assert_array_equal(stats.blocks, 2 * evaluations)


@pytest.mark.slow
def test_both_axes_may_be_adaptive_and_meet_their_tolerances_in_proportion(model):
    def nested(tolerance):
        plan = odelt.Adaptive(tolerance, tolerance)
        return odelt.sample_with_stats(model, NOISE, LABELS, time=plan, length=plan)

    time, length = odelt.FixedSteps(24, "dopri5"), odelt.FixedSteps(4, "dopri5")
    exact = odelt.sample(model, NOISE, LABELS, time=time, length=length)
    errors, blocks = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        images, stats = nested(tolerance)
        errors.append(float(jnp.abs(images - exact).max()))
        blocks.append(stats.blocks.sum())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3 * float(jnp.abs(exact).max())
    assert blocks[0] < blocks[1] < blocks[2]


@pytest.mark.thorough
def test_samples_do_not_depend_on_their_neighbours():
    """With steps of their own not even to the rounding of a shared one."""
    model = awake(TINY, length_embedding="none")
    for time in (odelt.FixedSteps(4), odelt.Adaptive(1e-3, 1e-3, per_example=True)):
        options = {"time": time, "depth_tolerance": 0.7}
        batch, stats = odelt.sample_with_stats(model, NOISE, LABELS, **options)
        alone, own = odelt.sample_with_stats(model, NOISE[1:], LABELS[1:], **options)
        np.testing.assert_allclose(batch[1:], alone, rtol=1e-4, atol=1e-4)
        assert stats.blocks[1] == own.blocks[0]


@pytest.mark.thorough
def test_each_sample_may_have_its_own_depth_under_any_plan(model):
    for time in (odelt.FixedSteps(2), odelt.Adaptive(1e-3, 1e-3, per_example=True)):
        for depth in (np.array([2, 4]), jnp.array([2, 4])):
            images, stats = odelt.sample_with_stats(model, NOISE, LABELS, time=time, depth=depth)
            np.testing.assert_array_equal(stats.depth, [2, 4])
            for i in (0, 1):
                one = odelt.sample(
                    model, NOISE[i : i + 1], LABELS[i : i + 1], time=time, depth=int(depth[i])
                )
                np.testing.assert_allclose(images[i], one[0], rtol=1e-4, atol=1e-4)


def test_the_length_plan_of_the_config_is_the_default(model):
    config = dataclasses.replace(model.config, length=odelt.FixedSteps(2, "heun"))
    other = odelt.DiT(config, key=jax.random.key(0))
    other = jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))
    expected = odelt.sample(model, NOISE, LABELS, length=odelt.FixedSteps(2, "heun"))
    np.testing.assert_array_equal(odelt.sample(other, NOISE, LABELS), expected)
    euler = odelt.sample(other, NOISE, LABELS, length=odelt.FixedSteps())
    np.testing.assert_array_equal(euler, odelt.sample(model, NOISE, LABELS))
    assert jnp.abs(euler - expected).max() > 0.01


def test_the_default_is_one_euler_step_at_full_depth(model):
    step = NOISE + model(0.0, NOISE, 0, LABELS, depth=4)
    np.testing.assert_allclose(odelt.sample(model, NOISE, LABELS), step, rtol=1e-4, atol=1e-4)


def test_sampling_may_be_part_of_a_larger_program(model):
    inside = jax.jit(lambda x: odelt.sample(model, x, LABELS, time=odelt.FixedSteps(2)))(NOISE)
    outside = odelt.sample(model, NOISE, LABELS, time=odelt.FixedSteps(2))
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-5)


def test_the_statistics_may_be_part_of_a_larger_program_too(model):
    time = odelt.FixedSteps(2, "heun")
    end = lambda x: odelt.sample_with_stats(model, x, LABELS, time=time)
    images, stats = jax.jit(end)(NOISE)
    np.testing.assert_allclose(images, end(NOISE)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stats.evaluations, 4)


def test_a_tolerance_may_be_traced(any_types, model):
    run = lambda tolerance: odelt.sample(
        model, NOISE, LABELS, depth=2, time=odelt.Adaptive(tolerance, tolerance, "heun")
    )
    np.testing.assert_allclose(jax.jit(run)(1e-2), run(1e-2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": np.float32("nan")}, "guidance must be a finite number of 32 bits; got nan"),
        ({"depth": 3}, r"depth must be one of 2, 4 \(in blocks\); got 3"),
        ({"condition": jnp.array([3, 11])}, "labels must lie between 0 and 9, or be 10 for none"),
        ({"condition": jnp.array([3, -1])}, "labels must lie between 0 and 9, or be 10 for none"),
        ({"noise": NOISE[:, :4]}, r"states must have shape \(batch, 8, 8, 1\)"),
        ({"config": odelt.FixedSteps(4)}, "config must be a SampleConfig; got FixedSteps"),
        ({"time": 4}, "time must be a FixedSteps or an Adaptive; got 4"),
        ({"length": "heun"}, "length must be a FixedSteps or an Adaptive; got 'heun'"),
        ({"guidance": "1.5"}, "guidance must be a number; got '1.5'"),
        ({"diffusion": None}, "diffusion must be a number; got None"),
        ({"diffusion": np.ones(3)}, r"diffusion must be one number; got array"),
        (
            {"depth_tolerance": [0.1, 0.2]},
            r"depth_tolerance must be one number; got \[0\.1, 0\.2\]",
        ),
        ({"guidance": [1.0, [2.0, 3.0]]}, "guidance must be a number; got "),
        ({"guidance_interval": 0.5}, "guidance_interval must be two rising times .* got 0.5"),
        ({"guidance_interval": ("0", "1")}, "guidance_interval must be two rising times"),
        ({"noise": None}, "states must be numbers; got None"),
        ({"condition": [[1], [2, 3]]}, "the condition must be numbers"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(any_types, model, change, message):
    arguments = {"noise": NOISE, "condition": LABELS} | change
    with pytest.raises(odelt.InputError, match=message):
        odelt.sample(model, **arguments)


@pytest.mark.parametrize("at", ["ab", ["0.5"], [0.1, [0.2, 0.3]], None, 0.5, []])
def test_times_of_a_trajectory_must_be_rising_numbers(any_types, model, at):
    with pytest.raises(odelt.InputError, match=r"at must hold rising times in \[0, 1\]; got"):
        odelt.trajectory(model, NOISE, LABELS, at)


@pytest.mark.parametrize("value", ["a", None, [0.1, [1]], ["0", "1"]])
@pytest.mark.parametrize("name", ["t", "step_index"])
def test_a_network_is_called_with_numbers(any_types, model, name, value):
    arguments = {"t": 0.5, "step_index": 0} | {name: value}
    with pytest.raises(odelt.InputError, match=f"{name} must be a number; got "):
        model(x=NOISE, condition=LABELS, **arguments)


@pytest.mark.parametrize("axis", ["time", "length"])
def test_a_solve_that_runs_out_of_steps_says_on_which_axis(model, axis):
    plan = {axis: odelt.Adaptive(1e-8, 1e-8, "heun", max_steps=4)}
    with pytest.raises(odelt.SolveError, match=f"^the {axis} axis needed more than 4 steps"):
        odelt.sample(model, NOISE, LABELS, **plan)
    images, stats = odelt.sample_with_stats(model, NOISE, LABELS, **plan)
    assert (stats.time_failed if axis == "time" else stats.length_failed).all()
    assert np.isfinite(images).all()


def test_noise_that_is_not_finite_is_named_and_not_the_steps(model):
    noise = NOISE.at[1, 0].set(jnp.nan)
    message = r"states to start from are not finite for 1 of 2 examples \(index 1\)"
    with pytest.raises(odelt.SolveError, match=message):
        odelt.sample(model, noise, LABELS, depth=2, time=odelt.Adaptive(max_steps=16))


@pytest.mark.thorough
def test_a_failure_names_the_samples_and_keeps_the_others(model):
    """One state lies so far out that it needs more steps than the other."""
    noise = NOISE.at[1].mul(1e4)
    time = odelt.Adaptive(1e-6, 1e-6, max_steps=1000, per_example=True)
    needed = odelt.sample_with_stats(model, noise, LABELS, time=time)[1]
    steps = np.sort(needed.accepted + needed.rejected)
    assert steps[0] < steps[1]
    slow = int(np.argmax(needed.accepted + needed.rejected))
    few = dataclasses.replace(time, max_steps=int(steps[0]))
    with pytest.raises(odelt.SolveError, match=rf"for 1 of 2 examples \(index {slow}\)"):
        odelt.sample(model, noise, LABELS, time=few)
    kept = odelt.sample_with_stats(model, noise, LABELS, time=few)[0][1 - slow]
    np.testing.assert_array_equal(kept, odelt.sample(model, noise, LABELS, time=time)[1 - slow])


def test_an_adaptive_solve_is_guided_as_a_fixed_one(model):
    def sample(time, guidance):
        return odelt.sample(model, NOISE, LABELS, time=time, depth=2, guidance=guidance)

    fine = odelt.FixedSteps(steps=128, solver="heun")
    for guidance in (0.0, 1.0, 1.5):
        adaptive = sample(odelt.Adaptive(rtol=1e-5, atol=1e-5), guidance)
        np.testing.assert_allclose(adaptive, sample(fine, guidance), atol=2e-3)
    assert jnp.abs(sample(fine, 1.5) - sample(fine, 1.0)).max() > 0.02


FINE = odelt.Adaptive(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "time", [FINE, odelt.FixedSteps(steps=128, solver="heun", grid="cosine")], ids=str
)
def test_images_go_back_to_their_noise(model, time):
    images = odelt.sample(model, NOISE, LABELS, time=time, depth=2)
    noise = odelt.invert(model, images, LABELS, time=time, depth=2)
    np.testing.assert_allclose(noise, NOISE, atol=5e-3)
    assert jnp.abs(images - NOISE).max() > 0.5


def test_a_trajectory_leads_from_the_noise_to_the_images(model):
    states = odelt.trajectory(model, NOISE, LABELS, (0.0, 0.25, 1.0), time=FINE, depth=2)
    assert states.shape == (3, *NOISE.shape)
    np.testing.assert_allclose(states[0], NOISE, atol=1e-6)
    images = odelt.sample(model, NOISE, LABELS, time=FINE, depth=2)
    np.testing.assert_allclose(states[2], images, atol=1e-4)
    quarter = odelt.trajectory(model, NOISE, LABELS, (0.25,), time=FINE, depth=2)
    np.testing.assert_allclose(states[1], quarter[0], atol=1e-5)


def test_one_euler_step_is_a_straight_line(model):
    half, end = odelt.trajectory(model, NOISE, LABELS, (0.5, 1.0))
    np.testing.assert_allclose(half, (NOISE + end) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "at", [(), (0.5, 0.5), (0.5, 0.2), (-0.1, 1.0), (0.5, 1.1), 0.5, [(0.0, 1.0)]]
)
def test_times_that_do_not_rise_within_the_solve_are_refused(any_types, model, at):
    with pytest.raises(odelt.InputError, match=r"at must hold rising times in \[0, 1\]; got"):
        odelt.trajectory(model, NOISE, LABELS, at)


@pytest.mark.parametrize("axis", ["time", pytest.param("length", marks=pytest.mark.thorough)])
def test_a_tolerance_that_bfloat16_cannot_meet_is_warned_of(model, axis):
    config = dataclasses.replace(model.config, dtype="bfloat16")
    half = odelt.DiT(config, key=jax.random.key(0))
    fine = {axis: odelt.Adaptive(rtol=1e-2, atol=1e-4)}
    message = rf"cannot meet {axis}\.rtol 0\.01 and {axis}\.atol 0\.0001: .* use 0\.001 or more"
    with pytest.warns(UserWarning, match=message):
        odelt.sample(half, NOISE, LABELS, depth=2, **fine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odelt.sample(half, NOISE, LABELS, depth=2, **{axis: odelt.Adaptive()})
        odelt.sample(model, NOISE, LABELS, depth=2, **fine)


def test_a_network_that_recomputes_in_training_is_sampled_as_any_other(model):
    length = odelt.FixedSteps(adjoint="recompute")
    config = dataclasses.replace(model.config, length=length)
    twin = odelt.DiT(config, key=jax.random.key(0))
    programs = [
        odelt.CompiledSampler(m, NOISE, LABELS, odelt.SampleConfig()) for m in (model, twin)
    ]
    assert programs[0].peak_bytes == programs[1].peak_bytes
