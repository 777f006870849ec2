"""The interface of networks: what a call accepts, and guidance."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.condition import as_condition, check_condition, drop_condition
from odelt_eqx.guidance import guided_velocity
from odelt_eqx.network import check_depth
from odelt_eqx.nn.layers import affine, linear
from odelt_eqx.ode import LengthStats


class Constant(odelt.Network):
    """A network of a user: its velocity is the condition, at any depth."""

    shape = (2,)
    depths = (1,)
    flow_index = 0
    length = odelt.FixedSteps()
    anytime = True
    condition_type: odelt.Classes | odelt.Vector | None = None

    def velocity(self, inputs):
        x, condition = inputs.x, inputs.condition
        v = jnp.ones_like(x) if condition is None else jnp.nan_to_num(condition, nan=5.0)
        stats = LengthStats.zeros(len(x))
        return v * jnp.ones_like(x), dataclasses.replace(stats, solves=jnp.ones(len(x)))


X = jnp.zeros((3, 2))


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.5, jnp.asarray(1.0)])
def test_guidance_extrapolates_from_no_label_and_runs_no_half_it_does_not_need(weight):
    batches = []

    class Recorded(Constant):
        def velocity(self, inputs):
            batches.append(len(inputs.x))
            return super().velocity(inputs)

    condition = jnp.array([[3.0, 3.0], [4.0, 4.0]])
    network = Recorded(odelt.Vector(2))
    v, stats = guided_velocity(network, jnp.zeros(2), X[:2], 0, condition, weight)
    np.testing.assert_allclose(v, 5 + weight * (condition - 5))
    both = not isinstance(weight, float) or weight not in (0.0, 1.0)
    assert batches == [4 if both else 2]
    np.testing.assert_array_equal(stats.solves, 2 if both else 1)


def test_a_network_of_a_user_is_sampled_inverted_and_has_a_likelihood():
    network = Constant()
    np.testing.assert_allclose(odelt.sample(network, X), 1.0)
    np.testing.assert_allclose(odelt.invert(network, X, time=odelt.Adaptive()), -1.0, atol=1e-5)
    density = odelt.log_likelihood(network, X).log_density
    np.testing.assert_allclose(density, -1.0 - np.log(2 * np.pi), rtol=1e-4)


def test_a_condition_may_be_a_vector_and_is_guided_as_a_class_is():
    network = Constant(odelt.Vector(2))
    condition = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(odelt.sample(network, X, condition), condition)
    np.testing.assert_allclose(odelt.sample(network, X, condition, guidance=0.0), 5.0)
    guided = odelt.sample(network, X, condition, guidance=2.0)
    np.testing.assert_allclose(guided, 2 * condition - 5.0)
    dropped = drop_condition(network.condition_type, condition, jnp.array([False, True, False]))
    assert jnp.isnan(dropped).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        (None, jnp.zeros(3, int), r"this network takes no condition; got one of shape \(3,\)"),
        (odelt.Classes(4), None, r"labels must have shape \(3,\); got None"),
        (odelt.Classes(4), jnp.array([0, 5, 1]), "labels must lie between 0 and 3, or be 4"),
        (odelt.Classes(4), jnp.array([0, -1, 1]), "labels must lie between 0 and 3, or be 4"),
        (odelt.Vector(2), jnp.zeros((3, 3)), r"the condition must have shape \(3, 2\)"),
        (odelt.Vector(2), jnp.ones((3, 2)).at[1, 0].set(jnp.nan), "must be finite, or all NaN"),
        (odelt.Vector(2), jnp.full((3, 2), jnp.inf), "must be finite, or all NaN"),
    ],
)
@pytest.mark.parametrize("run", [odelt.sample, lambda net, x, y: net(0.5, x, 0, y)])
def test_a_condition_of_another_kind_is_refused(kind, condition, message, run):
    with pytest.raises(odelt.InputError, match=message):
        run(Constant(kind), X, condition)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t": jnp.zeros(2)}, r"t must be a number or have shape \(3,\); got \(2,\)"),
        ({"step_index": jnp.zeros((3, 1))}, r"step_index must be a number or have shape \(3,\)"),
        ({"depth": np.array([1, 1])}, r"depth must be a number or have shape \(3,\); got \(2,\)"),
        ({"depth": jnp.ones(4, int)}, r"depth must be a number or have shape \(3,\); got \(4,\)"),
        ({"tolerance": float("nan")}, "a tolerance of the depth must be positive; got nan"),
    ],
)
def test_a_call_needs_one_value_for_all_or_one_for_each_example(any_types, arguments, message):
    with pytest.raises(odelt.InputError, match=message):
        Constant()(**{"t": 0.5, "x": X, "step_index": 0} | arguments)


class Growing(Constant):
    """A network of a user: blocks that grow, one a group, and `depth` times as fast at it."""

    depths = (1, 2)

    def velocity(self, inputs):
        groups = [odelt.ODEBlock((lambda h, c, key=None: 2 * h,))] * 2
        given = inputs.x, inputs.t[:, None], inputs.depth, inputs.length
        read = lambda u, depth: u * jnp.reshape(depth, (-1, 1))
        return odelt.integrate_length(groups, *given, read, tolerance=inputs.tolerance)


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_an_array_of_one_depth_is_the_depth_of_all(any_types, array):
    x = jnp.arange(1.0, 7.0).reshape(3, 2)
    for depth in (1, 2):
        expected = Growing()(0.5, x, 0, depth=depth)
        np.testing.assert_array_equal(Growing()(0.5, x, 0, depth=array([depth])), expected)


@pytest.mark.parametrize("depth", [2.0, np.array([2.0]), jnp.full(3, 2.0), (np.int64(1), 2.0)])
def test_a_depth_may_be_a_float_that_is_a_whole_number(any_types, depth):
    blocks = check_depth(depth, (1, 2))
    assert not isinstance(blocks, tuple) or all(type(each) is int for each in blocks)
    assert np.asarray(blocks).dtype.kind == "i"
    assert np.ravel(blocks)[-1] == 2


def test_arrays_of_one_value_are_for_all_where_examples_have_their_own_steps(any_types):
    x, condition, one = X + 1, jnp.arange(6.0).reshape(3, 2), np.ones(1)
    network, time = Constant(odelt.Vector(2)), odelt.Adaptive(per_example=True)
    found = odelt.sample(network, x, condition, time=time, guidance=2 * one, depth=one.astype(int))
    np.testing.assert_allclose(found, x + 2 * condition - 5, atol=1e-5)


def test_guidance_keeps_depths_known_while_tracing(any_types):
    depths = []

    class Recorded(Constant):
        def velocity(self, inputs):
            depths.append(inputs.depth)
            return super().velocity(inputs)

    network, one = Recorded(odelt.Vector(2)), np.ones(3, int)
    for depth, t in ((one, jnp.zeros(3)), (one[:1], jnp.zeros(1))):
        guided_velocity(network, t, X, 0, jnp.ones((3, 2)), 1.5, depth)
        assert isinstance(depths[-1], np.ndarray)
        assert depths[-1].tolist() == [1] * 6


@pytest.mark.parametrize("dtype", [jnp.uint8, bool, np.int64])
def test_integers_are_states_as_the_same_floats_are(any_types, dtype):
    class Affine(Constant):
        layer = linear(2, 2, jax.random.key(0))

        def velocity(self, inputs):
            _, stats = super().velocity(inputs)
            return affine(self.layer, inputs.x), stats

    x = np.array([[1, 0], [1, 1]]).astype(dtype)
    x = x if dtype is np.int64 else jnp.asarray(x)
    expected = Affine()(0.5, jnp.asarray(x, jnp.float32), 0)
    np.testing.assert_array_equal(Affine()(0.5, x, 0), expected)
    np.testing.assert_array_equal(odelt.sample(Affine(), x), x + expected)
    found, _ = odelt.consistency_sample(Affine(), x, None, jax.random.key(0))
    np.testing.assert_array_equal(found, x + expected)


def test_a_weight_of_guidance_may_be_a_list_of_one(model, any_types):
    noise, labels = jnp.ones((3, 8, 8, 1)), jnp.arange(3)
    one = odelt.sample(model, noise, labels, guidance=1.5, depth=2)
    for weight in ([1.5], (1.5,), np.array([1.5])):
        found = odelt.sample(model, noise, labels, guidance=weight, depth=2)
        np.testing.assert_allclose(found, one, atol=1e-6)


def test_where_one_key_is_needed_it_may_have_an_axis_and_several_are_refused(model, any_types):
    noise, labels, key = jnp.ones((3, 8, 8, 1)), jnp.arange(3), jax.random.key(0)
    steps = {"time": odelt.FixedSteps(2), "depth": 2}
    one, _ = odelt.consistency_sample(model, noise, labels, key, **steps)
    again, _ = odelt.consistency_sample(model, noise, labels, key[None], **steps)
    np.testing.assert_array_equal(one, again)
    several = jax.random.split(key, 3)
    for call in (
        lambda: odelt.consistency_sample(model, noise, labels, several, **steps),
        lambda: odelt.log_likelihood(model, noise, labels, probes=1, key=several, **steps),
    ):
        with pytest.raises(odelt.InputError, match=r"must be one key; got keys of shape \(3,\)"):
            call()


def test_a_dropout_key_is_one_for_all_or_one_for_each_example(any_types):
    keys = []

    class Recorded(Constant):
        def velocity(self, inputs):
            keys.append(jax.random.key_data(inputs.keys).tolist())
            return super().velocity(inputs)

    key = jax.random.key(0)
    for given in (key, key[None], jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        Recorded()(0.5, X, 0, key=given)
    assert keys == [jax.random.key_data(jax.random.split(key, 3)).tolist()] * 4
    each = jax.random.split(key, 3)[::-1]
    for given in (each, jax.random.key_data(each)):
        Recorded()(0.5, X, 0, key=given)
        assert keys[-1] == jax.random.key_data(each).tolist()
    for given, message in (
        (0, "key must be one of JAX's typed keys, like jax.random.key"),
        (jnp.zeros(2), "key must be one of JAX's typed keys"),
        (each[:2], r"key must be one key or have shape \(3,\); got \(2,\)"),
    ):
        with pytest.raises(odelt.InputError, match=message):
            Recorded()(0.5, X, 0, key=given)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shape", [2], r"shape of a network must be a tuple of integers; got \[2\]"),
        ("shape", 2, "shape of a network must be a tuple of integers; got 2"),
        ("depths", [2, 4], r"depths of a network must be a tuple of integers; got \[2, 4\]"),
        ("depths", (4, 2), r"depths must rise; got \(4, 2\)"),
        ("depths", (), r"depths must rise; got \(\)"),
    ],
)
def test_a_network_has_its_shape_and_its_depths_as_tuples(name, value, message):
    wrong = type("Wrong", (Constant,), {name: value})
    with pytest.raises(odelt.InputError, match=message):
        wrong()


@pytest.mark.parametrize("depth", [1, 8])
def test_a_network_whose_groups_do_not_give_a_depth_is_refused(depth):
    class Short(Growing):
        depths = (1, 2, 4, 8)

        def velocity(self, inputs):
            groups = [odelt.ODEBlock((lambda h, c, key=None: h,) * 2)] * 2
            return odelt.integrate_length(
                groups, inputs.x, inputs.t[:, None], inputs.depth, inputs.length
            )

    with pytest.raises(odelt.InputError, match=f"depth must lie between 2 and 4 .*; got {depth}"):
        Short()(0.5, X, 0, depth=depth)


def test_a_sample_needs_one_depth_for_all_or_one_for_each_example():
    with pytest.raises(odelt.InputError, match=r"depth must be a number or have shape \(3,\)"):
        odelt.sample(Constant(), X, depth=np.array([1, 1]))


def test_velocities_are_asked_for_at_a_list_of_depths(any_types):
    network = Constant()
    np.testing.assert_array_equal(
        network.velocities(0.5, X[:1], 0, depths=[1]), network.velocities(0.5, X[:1], 0)
    )
    with pytest.raises(odelt.InputError, match="depths must be a tuple of rising depths; got 1"):
        network.velocities(0.5, X, 0, depths=1)


def test_a_network_without_conditions_has_no_guidance():
    with pytest.raises(odelt.InputError, match=r"a network without conditions has no guidance"):
        odelt.sample(Constant(), X, guidance=1.5)


def test_an_unknown_option_is_refused_with_the_closest_name():
    with pytest.raises(odelt.InputError, match=r"'guidence'; did you mean guidance\?"):
        odelt.sample(Constant(), X, guidence=1.5)


LABELS = [1, 2]


@pytest.mark.parametrize(
    "labels", [LABELS, (1.0, 2.0), np.array(LABELS), jnp.array([1.0, 2.0])], ids=repr
)
def test_labels_may_be_a_list_or_floats_that_are_whole_numbers(model, labels):
    noise = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    expected = odelt.sample(model, noise, jnp.array(LABELS))
    np.testing.assert_array_equal(odelt.sample(model, noise, labels), expected)
    velocity = model(0.5, noise, 0, jnp.array(LABELS))
    np.testing.assert_array_equal(model(0.5, noise, 0, labels), velocity)


@pytest.mark.parametrize("labels", [[1.5, 2], [1, float("nan")], [True, False]])
def test_other_labels_are_refused(model, labels):
    with pytest.raises(odelt.InputError, match="labels must be whole numbers; got"):
        as_condition(model.condition_type, labels)


def test_guidance_may_differ_between_examples():
    network = Constant(odelt.Vector(2))
    condition = jnp.arange(6.0).reshape(3, 2)
    weights = np.array([0.0, 1.0, 2.5])
    for time in (odelt.FixedSteps(2), odelt.Adaptive(per_example=True)):
        found = odelt.sample(network, X, condition, guidance=weights, time=time)
        np.testing.assert_allclose(found, 5 + weights[:, None] * (condition - 5), rtol=1e-5)
    with pytest.raises(odelt.InputError, match=r"guidance must be a number or have shape \(3,\)"):
        odelt.sample(network, X, condition, guidance=weights[:2])


GUIDED_PLANS = [
    odelt.FixedSteps(20),
    odelt.FixedSteps(10, "midpoint"),
    odelt.Adaptive(),
    odelt.Adaptive(solver="tsit5", per_example=True),
]


@pytest.mark.parametrize("interval", [(0.2, 0.7), (0.0, 0.2), (0.7, 1.0)])
@pytest.mark.parametrize("time", GUIDED_PLANS, ids=str)
def test_guidance_acts_between_two_times(time, interval):
    """However few steps an adaptive solver would take: its steps end at these times."""
    network, condition = Constant(odelt.Vector(2)), jnp.arange(6.0).reshape(3, 2)
    weight = np.array([0.0, 1.0, 2.0]) if time.per_example else 3.0
    extra = np.reshape(np.asarray(weight) - 1, (-1, 1)) * (condition - 5)
    for run, sign in ((odelt.sample, 1), (odelt.invert, -1)):
        found = run(network, X, condition, time=time, guidance=weight, guidance_interval=interval)
        # On the way back the first time is inside: one Euler step too many, or one too few.
        first = interval[0] > 0, interval[1] < 1
        late = sign < 0 and time.solver == "euler" and first[0] - first[1]
        length = interval[1] - interval[0] + late / 20
        atol = 1e-3 if isinstance(time, odelt.Adaptive) else 1e-4
        np.testing.assert_allclose(sign * found, condition + length * extra, atol=atol)


def test_outside_the_interval_the_label_alone_is_evaluated():
    batches = []

    class Recorded(Constant):
        def velocity(self, inputs):
            jax.debug.callback(lambda x: batches.append(len(x)), inputs.x)
            return super().velocity(inputs)

    network, condition = Recorded(odelt.Vector(2)), jnp.ones((3, 2))
    plan, options = odelt.FixedSteps(8), {"guidance": 2.0, "guidance_interval": (0.25, 0.625)}
    _, stats = odelt.sample_with_stats(network, X, condition, time=plan, **options)
    jax.effects_barrier()
    assert batches == [3, 3, 6, 6, 6, 3, 3, 3]  # guided at 2/8, 3/8 and 4/8
    np.testing.assert_array_equal(stats.evaluations, 11)
    half = odelt.log_likelihood(network, X, condition, **options).log_density
    whole = odelt.log_likelihood(network, X - 0.375 * (1 - 5) * np.ones(2), condition).log_density
    np.testing.assert_allclose(half, whole, rtol=1e-3)


@pytest.mark.parametrize(
    "interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.1), (0.0, float("nan"))]
)
def test_an_interval_is_two_rising_times(interval):
    message = "guidance_interval must be "
    with pytest.raises(odelt.InputError, match=message):
        odelt.SampleConfig(guidance=2.0, guidance_interval=interval)
    with pytest.raises(odelt.InputError, match=message):
        odelt.sample(Constant(), X, guidance_interval=list(interval))


@pytest.mark.parametrize("kind", [odelt.Vector(2, "null"), odelt.Vector(2)], ids=str)
def test_a_network_that_never_learned_its_condition_is_given_the_null_condition(kind):
    network, condition = Constant(kind), jnp.ones((3, 2))
    expected = 5.0 if kind.learned == "null" else 1.0
    np.testing.assert_array_equal(network(0.0, X, 0, condition), expected)
    for run in (odelt.sample, lambda *inputs: odelt.sample_with_stats(*inputs)[0]):
        np.testing.assert_allclose(run(network, X, condition), expected)
    np.testing.assert_allclose(odelt.invert(network, X, condition), -expected)
    if kind.learned == "null":
        np.testing.assert_allclose(odelt.sample(network, X), expected)  # it may be left out
        np.testing.assert_allclose(odelt.sample(network, X, guidance=0), expected)


def test_a_label_that_is_ignored_may_be_any():
    check_condition(odelt.Classes(1, "null"), jnp.array([7, -1, 0]), 3)


@pytest.mark.parametrize("kind", [None, odelt.Vector(2)])
def test_a_condition_is_numbers(any_types, kind):
    with pytest.raises(odelt.InputError, match="the condition must be numbers; got SampleConfig"):
        odelt.sample(Constant(kind), X, odelt.SampleConfig())


def test_a_batch_may_be_empty():
    assert odelt.sample(Constant(), X[:0], time=odelt.Adaptive()).shape == (0, 2)
    assert odelt.log_likelihood(Constant(), X[:0]).log_density.shape == (0,)


def test_weights_are_float32_and_samplers_run_where_jax_computes_in_64_bits(model):
    parts = {"qk_norm": True, "modulation": "shared", "norm": "scaled-rms"}
    config = dataclasses.replace(model.config, **parts)
    with jax.enable_x64():
        network = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {jnp.dtype("float32")}
        x = X.astype(jnp.float32)
        np.testing.assert_allclose(odelt.trajectory(Constant(), x, None, [0.5, 1.0])[1], 1.0)
        found, _ = odelt.consistency_sample(Constant(), x, None, jax.random.key(0))
        np.testing.assert_allclose(found, 1.0)


def test_guidance_needs_both_halves_to_be_learned():
    for learned, weights in (("null", (2.0, np.ones(3))), ("condition", (0, 2.0, np.ones(3)))):
        network = Constant(odelt.Vector(2, learned))
        for weight in weights:
            with pytest.raises(odelt.InputError, match=r"has no guidance|guidance must be 1"):
                odelt.sample(network, X, jnp.ones((3, 2)), guidance=weight)
        odelt.sample(network, X, jnp.ones((3, 2)), guidance=1.0)


def test_guidance_may_be_traced():
    network, condition = Constant(odelt.Vector(2)), jnp.ones((3, 2))
    run = lambda weight: odelt.sample(network, X, condition, guidance=weight)
    np.testing.assert_allclose(jax.jit(run)(2.0), -3.0)
    np.testing.assert_allclose(jax.jit(run)(1.0), 1.0)
