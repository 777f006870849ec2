"""Every training type of the reference, from the draws that it was recorded with."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odelt_eqx.interop import PublishedLiveReflow, PublishedShortcut
from odelt_eqx.objective import (
    ConsistencyDistillation,
    FlowDraws,
    FlowMatching,
    LiveReflow,
    Networks,
    Progressive,
    Shortcut,
    ShortcutDraws,
    StageDraws,
    TrainingTime,
)
from odelt_eqx.objective.path import FLOOR
from tests.conftest import GOLDEN, assert_matches

RECORDED_AT = TrainingTime(step=300, steps=1000)
"""The place in its schedules at which the reference was recorded."""


class Draws:
    """The draws of one training type, in order."""

    def __init__(self, recorded, name):
        names = sorted(n for n in recorded.files if n.startswith(f"{name}/draw_"))
        self.arrays = [jnp.asarray(recorded[n]) for n in names]

    def __getitem__(self, index):
        return self.arrays[index]

    def on_grid(self, index, points):
        """Uniform draws that lie in the recorded cells of a grid."""
        return (self[index] + 0.5) / points

    def flow(self, first, **changes):
        fields = ("drop", "time", "noise")
        return FlowDraws(**{f: self[first + i] for i, f in enumerate(fields)} | changes)


def stages(objective):
    """Return how to make draws of a scheduled objective, with no label dropped."""

    def make(draws, network):
        none = jnp.zeros(16, bool)
        index = objective.draw(jax.random.key(0), 16, network, RECORDED_AT).step_index
        flow = FlowDraws(drop=none, time=draws.on_grid(0, 2**index), noise=draws[1])
        return StageDraws(step_index=index, flow=flow)

    return make


def shortcuts(draws, _):
    return ShortcutDraws(step_index=draws[0], time=draws[1], noise=draws[2], flow=draws.flow(3))


def pairs(draws, _):
    flow = draws.flow(0, time=draws.on_grid(1, 128))
    flow = FlowDraws(drop=flow.drop[:12], time=flow.time[:12], noise=flow.noise[:12])
    index = jnp.zeros(4, jnp.int32)
    return ShortcutDraws(index, draws.on_grid(4, 128), draws[3][:4], flow)


def frozen(draws, _):
    return FlowDraws(jnp.zeros(16, bool), draws.on_grid(0, 128), draws[1])


def flows(draws, _):
    return draws.flow(0)


TABLE = {
    "naive": (
        FlowMatching(times="grid", sigma_min=FLOOR),
        lambda draws, _: draws.flow(0, time=draws.on_grid(1, 128)),
    ),
    "fm": (FlowMatching(sigma_min=0.01), flows),
    "icfm": (FlowMatching(sigma=0.01), lambda draws, _: draws.flow(0, spread=draws[3])),
    "rfm": (FlowMatching(), flows),
    "shortcut": (PublishedShortcut(Shortcut(every=4)), shortcuts),
    "shortcut_cfg": (PublishedShortcut(Shortcut(every=4, guidance=1.5)), shortcuts),
    "livereflow": (PublishedLiveReflow(LiveReflow(every=4, guidance=1.5)), pairs),
    "progressive": (Progressive(), stages(Progressive())),
    "progressive_cfg": (Progressive(guidance=1.5), stages(Progressive())),
    "consistency_distillation": (ConsistencyDistillation(), frozen),
}


RECORDED = [
    pytest.param(network, name, marks=[pytest.mark.thorough] * (network != "small"))
    for network in ("b", "tail", "small")
    for name in TABLE
    if f"{name}/x_t" in np.load(GOLDEN / f"{network}.targets.npz")
]


@pytest.mark.parametrize(("golden", "name"), RECORDED, indirect=["golden"])
def test_targets_from_the_recorded_draws(golden, name):
    recorded = golden.recorded("targets")
    objective, draws_of = TABLE[name]
    draws = draws_of(Draws(recorded, name), golden.model)
    images, labels = jnp.asarray(recorded["images"]), jnp.asarray(recorded["labels"])
    networks = Networks.all(golden.model if name == "livereflow" else golden.ema)
    targets = eqx.filter_jit(objective.targets)(draws, images, labels, networks)
    for ours, theirs in (("x_t", "x_t"), ("velocity", "target"), ("t", "t")):
        assert_matches(getattr(targets, ours), recorded[f"{name}/{theirs}"])
    np.testing.assert_array_equal(targets.step_index, recorded[f"{name}/step_index"])
    np.testing.assert_array_equal(targets.condition, recorded[f"{name}/labels"])
    assert targets.depth == "full"


def test_every_recorded_type_is_in_the_table(golden):
    recorded = {name.split("/")[0] for name in golden.recorded("targets").files if "/" in name}
    assert recorded <= set(TABLE)
