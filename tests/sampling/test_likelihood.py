"""Densities: of a Gaussian by its formula, of a network by the volume that its flow keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import odelt_eqx as odelt
from odelt_eqx.ode import LengthStats
from odelt_eqx.ode.count import integrate_time_counted
from odelt_eqx.sampling.likelihood import standard_normal, with_divergence

SIZE = 6
PLAN = odelt.Adaptive(1e-4, 1e-4)
RANDOM = np.random.default_rng(0)
AXES = np.linalg.qr(RANDOM.standard_normal((SIZE, SIZE)))[0].astype(np.float32)
SPREAD = np.linspace(0.2, 1.2, SIZE).astype(np.float32)
MEAN = RANDOM.standard_normal(SIZE).astype(np.float32)


def gaussian(t, x, _):
    """The velocity that carries N(0, I) to a Gaussian whose axes are not those of the values."""
    inside = (x - t * MEAN) @ AXES
    rate = (t * SPREAD**2 - (1 - t)) / ((1 - t) ** 2 + (t * SPREAD) ** 2)
    return MEAN + (rate * inside) @ AXES.T, LengthStats.zeros(len(x))


@pytest.mark.parametrize("probes", [None, 4096])
@pytest.mark.parametrize(
    "plan", [odelt.Adaptive(1e-4, 1e-4), odelt.FixedSteps(64, "heun")], ids=str
)
def test_bits_of_a_gaussian_are_its_formula(probes, plan):
    target = scipy.stats.multivariate_normal(MEAN, AXES @ np.diag(SPREAD**2) @ AXES.T)
    images = target.rvs(8, random_state=1).astype(np.float32)
    signs = None
    if probes:
        signs = jax.random.rademacher(jax.random.key(0), (8, probes, SIZE), jnp.float32)
    start, args = (jnp.asarray(images), jnp.zeros(8)), (None, signs)
    field = with_divergence(gaussian)
    solution, _, _ = integrate_time_counted(field, start, plan, args, backwards=True)
    noise, change = solution.states
    found = float(jnp.mean(standard_normal(noise[-1]) + change[-1]))
    assert found == pytest.approx(np.mean(target.logpdf(images)), rel=0.01)


IMAGES = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1), minval=-1)
LABELS = jnp.array([3, 10])


@pytest.mark.slow
def test_the_density_of_a_network_is_the_volume_that_its_flow_keeps(model):
    """`log p_1 = log p_0 + log |det dx_0 / dx_1|`, the determinant taken of the solve itself."""
    found = odelt.log_likelihood(model, IMAGES, LABELS, time=PLAN, depth=2, guidance=1.5)

    def back(image, label):
        noise = odelt.invert(model, image[None], label[None], time=PLAN, depth=2, guidance=1.5)
        return noise[0].ravel()

    for i in range(2):
        jacobian = jax.jacrev(back)(IMAGES[i], LABELS[i]).reshape(64, 64)
        noise = back(IMAGES[i], LABELS[i])
        expected = standard_normal(noise[None])[0] + jnp.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(found.log_density[i], expected, rtol=2e-3)
    bits = -found.log_density / (64 * np.log(2))
    np.testing.assert_allclose(found.bits_per_dim, bits, rtol=1e-6)
    assert (found.stats.evaluations > 10).all()


@pytest.mark.slow
def test_probes_estimate_the_trace_without_bias_at_any_depth_and_under_any_plan(model):
    for options in (
        {"depth": 4, "time": odelt.FixedSteps(4), "length": odelt.FixedSteps(2, "heun")},
        {"depth": "plain", "time": odelt.FixedSteps(4, "heun")},
    ):
        exact = odelt.log_likelihood(model, IMAGES, LABELS, **options)
        key = jax.random.key(1)
        guess = odelt.log_likelihood(model, IMAGES, LABELS, probes=64, key=key, **options)
        np.testing.assert_allclose(guess.log_density, exact.log_density, rtol=0.05)
        assert not np.array_equal(guess.log_density, exact.log_density)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"probes": 0, "key": jax.random.key(0)}, "0 with a key"),
        ({"probes": 2}, "2 without a key"),
        ({"probes": "hutchinson", "key": jax.random.key(0)}, "'hutchinson' with a key"),
    ],
)
def test_probes_need_a_number_and_a_key(any_types, model, change, got):
    message = f'probes must be "exact", or a number of at least 1 with a key; got {got}'
    with pytest.raises(odelt.InputError, match=message):
        odelt.log_likelihood(model, IMAGES, LABELS, **change)


class Wave(odelt.Network):
    """A network whose divergence depends on the state."""

    shape, condition_type, depths, flow_index = (2,), None, (1,), 0
    length, anytime = odelt.FixedSteps(), True

    def velocity(self, inputs):
        return jnp.sin(2 * inputs.x), LengthStats.zeros(len(inputs.x))


def test_a_likelihood_by_fixed_steps_has_a_gradient():
    x, direction = jnp.array([[0.3, -0.8]]), jnp.array([[1.0, 2.0]])
    density = lambda x: odelt.log_likelihood(
        Wave(), x, time=odelt.FixedSteps(4, "heun")
    ).log_density[0]
    slope = jnp.sum(jax.grad(density)(x) * direction)
    difference = density(x + 1e-2 * direction) - density(x - 1e-2 * direction)
    np.testing.assert_allclose(slope, difference / 2e-2, rtol=2e-3)


def test_a_likelihood_whose_solve_fails_is_an_error(model):
    with pytest.raises(odelt.SolveError, match="the time axis needed more than 2 steps"):
        odelt.log_likelihood(model, IMAGES, LABELS, time=odelt.Adaptive(max_steps=2), depth=2)
