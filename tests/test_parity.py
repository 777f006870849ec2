"""The same numbers as the public reference, recorded in `tests/golden`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.objective import Objective, Targets, Teacher
from odelt_eqx.training.optimizer import learning_rate, make_optimizer
from odelt_eqx.training.step import TrainState, make_train_step, squared_error
from tests.conftest import assert_matches

NETWORKS = pytest.mark.parametrize(
    "golden",
    [
        "small",
        pytest.param("tail", marks=pytest.mark.thorough),
        pytest.param("b", marks=pytest.mark.slow),
    ],
    indirect=True,
)
"""The recorded networks, for tests in which the twelve blocks of `b` take long."""


@eqx.filter_jit
def velocity(model, recorded, depth):
    t, x, step_index, labels = (recorded[k] for k in ("t", "x", "step_index", "labels"))
    return model(t, x, step_index, labels, depth=depth)


def inputs(recorded):
    return {k: jnp.asarray(recorded[k]) for k in ("t", "x", "step_index", "labels")}


def test_forward_at_every_depth(golden):
    recorded = golden.recorded("forward")
    for depth in golden.config.depths:
        ours = velocity(golden.model, inputs(recorded), depth)
        assert_matches(ours, recorded[f"velocity/depth_{depth}"])


def test_forward_as_a_plain_dit(golden):
    recorded = golden.recorded("forward")
    ours = velocity(golden.model, inputs(recorded), "plain")
    assert_matches(ours, recorded["velocity/conventional"])


@pytest.mark.parametrize("known", [True, False], ids=["leaving", "masked"])
def test_forward_with_a_depth_for_each_example(golden, known):
    recorded = golden.recorded("forward")
    blocks, given = recorded["blocks"], inputs(recorded)
    if known:
        ours = eqx.filter_jit(lambda m, r: velocity(m, r, blocks))(golden.model, given)
    else:
        ours = velocity(golden.model, given, jnp.asarray(blocks))
    assert_matches(ours, recorded["velocity/per_example_depth"])


@NETWORKS
def test_euler_sampling(golden):
    recorded = golden.recorded("sampling")
    noise, labels = jnp.asarray(recorded["noise"]), jnp.asarray(recorded["labels"])
    names = [name for name in recorded.files if name.startswith("euler/")]
    assert len(names) == 27
    for name in names:
        depth, steps, guidance = (float(part.split("_")[1]) for part in name.split("/")[1:])
        ours = odelt.sample(
            golden.model,
            noise,
            labels,
            time=odelt.FixedSteps(steps=int(steps)),
            depth=int(depth),
            guidance=guidance,
        )
        assert_matches(ours, recorded[name])


def test_dead_blocks_are_not_run(golden):
    """Blocks past the last full group may hold anything: no depth reads them."""
    dead = golden.config.dead_blocks
    if not dead:
        pytest.skip("every block of this network belongs to a full group")
    recorded = golden.recorded("forward")
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), golden.model.blocks[-dead:])
    broken = eqx.tree_at(lambda m: m.blocks[-dead:], golden.model, nan)
    for depth in golden.config.depths:
        ours = velocity(broken, inputs(recorded), depth)
        assert_matches(ours, recorded[f"velocity/depth_{depth}"])
    assert jnp.isnan(velocity(broken, inputs(recorded), "plain")).all()


@dataclasses.dataclass(frozen=True)
class Recorded(Objective):
    """An objective whose batch is the recorded one."""

    batch: Targets = dataclasses.field(compare=False)

    trains_steps = True
    taught_by = "average"

    def draw(self, key, batch_size, network, when):
        return None

    def targets(self, draws, data, condition, networks):
        return self.batch


@NETWORKS
def test_length_consistency_and_three_steps_of_training(golden):
    recorded = golden.recorded("train_step")
    last = len(recorded["teacher_depth"])
    x_t, t, step_index, labels, velocity = (
        jnp.asarray(recorded[k]) for k in ("x_t", "t", "step_index", "labels", "target")
    )
    at_depth = eqx.filter_jit(
        lambda ema: Teacher(ema)(
            *(a[-last:] for a in (t, x_t, step_index, labels)), depth=recorded["teacher_depth"]
        )
    )
    assert_matches(at_depth(golden.ema), velocity[-last:])

    batch = Targets(x_t, t, step_index, labels, velocity, recorded["student_depth"])

    def loss(model):
        each = squared_error(model, batch)
        return jnp.mean(each), each

    (value, each), gradient = eqx.filter_jit(jax.value_and_grad(loss, has_aux=True))(golden.model)
    assert_matches(value, recorded["loss"])
    assert_matches(each, recorded["per_example"])
    assert_matches(optax.tree.norm(gradient), recorded["grad_norm"])
    pairs = list(golden.pairs(recorded, "grad", gradient))
    assert len(pairs) > 20
    for ours, theirs in pairs:
        assert_matches(ours, theirs)

    config = OptimizerConfig(learning_rate=1e-3, warmup=2)
    rate = learning_rate(config, 100)
    for step, theirs in zip(recorded["lr_steps"], recorded["lr"], strict=True):
        assert float(rate(step)) == pytest.approx(theirs, abs=1e-9)
    optimizer = make_optimizer(config, 100)
    state = TrainState(
        model=jax.tree.map(jnp.copy, golden.model),
        ema=jax.tree.map(jnp.copy, golden.ema),
        opt_state=optimizer.init(golden.model),
        step=jnp.zeros((), jnp.int32),
    )
    train_step = make_train_step(Recorded(batch), optimizer, steps=100, ema=config.ema)
    for _ in range(3):
        state, _ = train_step(state, x_t, labels, jax.random.key(0))
    width = golden.config.hidden_size
    for which, weights in (("params", state.model), ("params_ema", state.ema)):
        pairs = list(golden.pairs(recorded, f"after3/{which}", weights))
        assert len(pairs) > 10
        for ours, theirs in pairs:
            if theirs.shape == (3 * width,):  # no softmax sees the bias of its keys: its gradient
                keys = np.s_[width : 2 * width]  # is rounding, which Adam makes as large as a step
                assert np.abs(ours[keys] - theirs[keys]).max() < 1e-4
                ours, theirs = (np.delete(x, keys) for x in (ours, theirs))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
