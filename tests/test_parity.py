"""The same numbers as the public reference, recorded in `tests/golden`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt


def assert_matches(ours, reference):
    """Equal to 1e-5 of the largest value."""
    reference = np.asarray(reference)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@eqx.filter_jit
def velocity(model, recorded, depth):
    t, x, step_index, labels = (recorded[k] for k in ("t", "x", "step_index", "labels"))
    return model(t, x, step_index, labels, depth=depth)


def inputs(recorded):
    return {k: jnp.asarray(recorded[k]) for k in ("t", "x", "step_index", "labels")}


def test_forward_at_every_depth(golden):
    model, recorded = golden
    for depth in model.config.depths:
        ours = velocity(model, inputs(recorded["forward"]), depth)
        assert_matches(ours, recorded["forward"][f"velocity/depth_{depth}"])


def test_forward_as_a_plain_dit(golden):
    model, recorded = golden
    ours = velocity(model, inputs(recorded["forward"]), None)
    assert_matches(ours, recorded["forward"]["velocity/conventional"])


@pytest.mark.parametrize("known", [True, False], ids=["leaving", "masked"])
def test_forward_with_a_depth_for_each_example(golden, known):
    model, recorded = golden
    blocks = recorded["forward"]["blocks"]
    given = inputs(recorded["forward"])
    if known:
        ours = eqx.filter_jit(lambda m, r: velocity(m, r, blocks))(model, given)
    else:
        ours = velocity(model, given, jnp.asarray(blocks))
    assert_matches(ours, recorded["forward"]["velocity/per_example_depth"])


def test_euler_sampling(golden):
    model, recorded = golden
    sampling = recorded["sampling"]
    noise, labels = jnp.asarray(sampling["noise"]), jnp.asarray(sampling["labels"])
    names = [name for name in sampling.files if name.startswith("euler/")]
    assert len(names) == 27
    for name in names:
        depth, steps, guidance = (float(part.split("_")[1]) for part in name.split("/")[1:])
        ours = odelt.sample(
            model,
            noise,
            labels,
            time=odelt.FixedSteps(int(steps)),
            depth=int(depth),
            guidance=guidance,
        )
        assert_matches(ours, sampling[name])


def test_dead_blocks_are_not_run(golden):
    """Blocks past the last full group may hold anything: no depth reads them."""
    model, recorded = golden
    dead = model.config.dead_blocks
    if not dead:
        pytest.skip("every block of this network belongs to a full group")
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model.blocks[-dead:])
    broken = eqx.tree_at(lambda m: m.blocks[-dead:], model, nan)
    for depth in model.config.depths:
        ours = velocity(broken, inputs(recorded["forward"]), depth)
        assert_matches(ours, recorded["forward"][f"velocity/depth_{depth}"])
    assert jnp.isnan(velocity(broken, inputs(recorded["forward"]), None)).all()
