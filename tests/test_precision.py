"""What a bfloat16 network computes in bfloat16, and what it never does."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig
from odelt_eqx.nn.block import Attention
from odelt_eqx.objective import LengthConsistency, Shortcut
from odelt_eqx.ode.plan import SOLVERS
from odelt_eqx.training.optimizer import make_optimizer
from odelt_eqx.training.step import init_state, make_train_step
from tests.conftest import TINY

HALF = dataclasses.replace(TINY, dtype="bfloat16")
X = jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)
T = jax.ShapeDtypeStruct((3,), jnp.float32)
LABELS = jax.ShapeDtypeStruct((3,), jnp.int32)


def abstract_network():
    return eqx.filter_eval_shape(odelt.DiT, HALF, key=jax.random.key(0))


def equations(jaxpr):
    """Every operation of a program, those inside of loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def velocity_program(depth, length=None):
    velocity = lambda m, t, x, y: m(t, x, 7, y, depth=depth, length=length)
    return list(equations(jax.make_jaxpr(velocity)(abstract_network(), T, X, LABELS).jaxpr))


def dtypes(variables):
    return {str(v.aval.dtype) for v in variables if jnp.issubdtype(v.aval.dtype, jnp.floating)}


def test_the_products_of_blocks_are_bfloat16_and_all_others_float32():
    """Seven a block: modulation, query-key-value, logits, mixture, output, and the MLP's two."""
    products = [e for e in velocity_program(4) if e.primitive.name == "dot_general"]
    kinds = [dtypes(e.invars) for e in products]
    assert kinds.count({"bfloat16"}) == 7 * 4
    assert kinds.count({"float32"}) == len(kinds) - 7 * 4 == 7


def test_the_softmax_is_float32_in_the_program():
    exponentials = [e for e in velocity_program(4) if e.primitive.name == "exp"]
    softmaxes = [e for e in exponentials if e.invars[0].aval.shape[-2:] == (4, 4)]
    assert len(softmaxes) == 4
    assert dtypes(v for e in softmaxes for v in (*e.invars, *e.outvars)) == {"float32"}


def test_the_softmax_tells_logits_apart_that_bfloat16_does_not():
    """Logits of 256 and 257 would both be 256: a half and a half instead of 0.27 and 0.73."""
    assert jnp.bfloat16(257) == 256
    weight = np.zeros((12, 4), np.float32)
    weight[:2, :2] = [[32, 32], [2, 2]]  # the same query for both tokens
    weight[4:6, :2] = [[32, 32], [0, 2]]  # keys whose products with it are 1024 and 1028
    weight[8, 1] = 1  # the second token's value
    config = dataclasses.replace(TINY, hidden_size=4, num_heads=1)
    attention = Attention(config, key=jax.random.key(0))
    attention = eqx.tree_at(
        lambda a: (a.qkv.weight, a.out.weight), attention, (jnp.asarray(weight), jnp.eye(4))
    )
    mixed = attention(jnp.eye(4, dtype=jnp.bfloat16)[:2])
    assert mixed.dtype == jnp.bfloat16
    assert float(mixed[0, 0]) == pytest.approx(1 / (1 + np.exp(-1)), abs=3e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_length_solver_carries_float32(solver):
    """All that its loop over steps carries from one step to the next is."""
    program = velocity_program(2, odelt.FixedSteps(3, solver))
    loops = [e for e in program if e.primitive.name in ("while", "scan")]
    assert loops
    assert dtypes(v for e in loops for v in e.outvars) == {"float32"}


@pytest.mark.parametrize("plan", [odelt.FixedSteps(3, "heun"), odelt.Adaptive(1e-2, 1e-2)], ids=str)
def test_the_time_solver_carries_float32(plan):
    sample = lambda m, x, y: odelt.sample(m, x, y, time=plan)
    program = list(equations(jax.make_jaxpr(sample)(abstract_network(), X, LABELS).jaxpr))
    loops = [e for e in program if e.primitive.name in ("while", "scan")]
    assert loops
    assert dtypes(v for e in loops for v in e.outvars) == {"float32"}


def test_training_keeps_weights_average_moments_and_loss_in_float32():
    optimizer = make_optimizer(OptimizerConfig(warmup=0), 100)
    step = make_train_step(LengthConsistency(Shortcut()), optimizer, ema=0.9, steps=100)

    def two_steps(images, labels, key):
        state = init_state(HALF.build(key=key), optimizer)
        state, _ = step(state, images, labels, key)
        return step(state, images, labels, key)

    images = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((16,), jnp.int32)
    state, metrics = eqx.filter_eval_shape(two_steps, images, labels, jax.random.key(0))
    for part in (state.model, state.ema, state.opt_state, metrics):
        kinds = {x.dtype for x in jax.tree.leaves(part)}
        assert kinds <= {jnp.dtype("float32"), jnp.dtype("int32")}
        assert jnp.dtype("float32") in kinds
