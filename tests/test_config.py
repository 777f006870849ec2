"""Plans in configs: written, read, and obeyed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig, load_config, save_config
from odelt_eqx.data import Folder, Loading, Npz, Shards, Toy
from odelt_eqx.evaluation.samples import SampleRequest, save_samples
from odelt_eqx.objective import (
    DEPTH_TYPES,
    TRAIN_TYPES,
    DeepSupervision,
    FlowMatching,
    LengthConsistency,
    SelfAlignment,
)
from odelt_eqx.presets import of_type, preset
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.weights import convert
from tests.conftest import TINY, TINY_RUN

PLANS = [odelt.FixedSteps(2, "heun", adjoint="recompute"), odelt.Adaptive(1e-2, 1e-4, max_steps=7)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_length_plan_survives_a_config_and_a_safetensors_file(tmp_path, plan):
    model = dataclasses.replace(TINY, length=plan)
    sample = odelt.SampleConfig(time=plan, length=plan, depth=2, guidance=1.5)
    config = dataclasses.replace(TINY_RUN, model=model, sample=sample)
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    odelt.save_safetensors(odelt.DiT(model, key=jax.random.key(0)), tmp_path / "a.safetensors")
    assert odelt.load_safetensors(tmp_path / "a.safetensors").config == model


def test_a_size_is_one_number_or_two(tmp_path):
    for size in (8, (8, 12)):
        config = dataclasses.replace(
            TINY_RUN,
            model=dataclasses.replace(TINY, image_size=size),
            data=Folder(tmp_path, size=size),
        )
        save_config(config, tmp_path / "config.json")
        assert load_config(tmp_path / "config.json") == config
    text = (tmp_path / "config.json").read_text()
    for wrong in ('"8"', "[8]", "[8, 12, 1]", "8.5", "null"):
        (tmp_path / "config.json").write_text(re.sub(r"\[\s*8,\s*12\s*\]", wrong, text))
        with pytest.raises(odelt.InputError, match="does not fit this version"):
            load_config(tmp_path / "config.json")


def test_a_run_that_began_before_the_average_warmed_up_goes_on_without(tmp_path):
    saved = to_dict(TINY_RUN)
    del saved["optimizer"]["ema_warmup"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert TINY_RUN.optimizer.ema_warmup
    assert not load_config(tmp_path / "config.json").optimizer.ema_warmup


def test_a_config_that_its_own_checks_refuse_says_why(tmp_path):
    save_config(TINY_RUN, tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"patch_size": 4', '"patch_size": 3', "image_size must be a multiple of patch_size 3"),
        ('"type": "DiTConfig"', '"type": "GPT"', "type must be one of DiTConfig, VectorNetConfig"),
        ('"steps": 6', '"stops": 6', "extra fields found .*stops"),
    ):
        assert old in text
        (tmp_path / "config.json").write_text(text.replace(old, new))
        with pytest.raises(odelt.InputError, match=message):
            load_config(tmp_path / "config.json")


def test_a_run_is_sampled_with_the_plans_that_it_was_trained_with(tmp_path):
    """Unless it is asked otherwise."""
    plans = {"length": odelt.FixedSteps(2, "heun")}
    model = odelt.DiT(dataclasses.replace(TINY, **plans), key=jax.random.key(0))
    odelt.save_safetensors(model, tmp_path / "weights.safetensors")
    config = dataclasses.replace(TINY_RUN, sample=odelt.SampleConfig(time=odelt.FixedSteps(3)))
    convert(tmp_path / "weights.safetensors", tmp_path / "run", config)

    def draw(name, config=None):
        request = SampleRequest(count=2, out=tmp_path / name)
        (_, arrays), stats = save_samples(tmp_path / "run", request, config)
        return np.load(arrays)["images"], stats

    images, stats = draw("default")
    np.testing.assert_array_equal(stats.blocks, 3 * 4 * 4)
    asked, _ = draw("asked", odelt.SampleConfig(time=odelt.FixedSteps(3), **plans))
    np.testing.assert_array_equal(images, asked)
    _, other = draw("other", odelt.SampleConfig(length=odelt.FixedSteps()))
    np.testing.assert_array_equal(other.blocks, 4)


def test_renoised_samples_differ_from_those_of_the_flow(tiny_run, tmp_path):
    def draw(name, **changes):
        request = SampleRequest(count=2, out=tmp_path / name, **changes)
        (_, arrays), _ = save_samples(tiny_run, request)
        return np.load(arrays)["images"]

    assert np.abs(draw("flow") - draw("renoised", renoise=True)).max() > 0.01
    with pytest.raises(odelt.InputError, match="renoise follows no flow"):
        SampleRequest(renoise=True, trajectory=(0.5,))


EIGHT = odelt.FixedSteps(8, "ab2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_guidance": 1.0, "guide_depth": 5}, "depth must be one of 2, 4, 6 .*; got 5"),
        ({"depth_guidance": 1.0, "guide_depth": 6}, "the guide must be shallower than depth 6"),
        ({"depth": (2, 4)}, "there must be a depth for each of 8 steps"),
        ({"depth": (2, 4), "time": odelt.Adaptive()}, "a depth for every step needs fixed steps"),
        ({"diffusion": 1.0}, "diffusion needs fixed steps of time"),
        (
            {"diffusion": 1.0, "as_published": True, "time": odelt.FixedSteps(8)},
            "as_published asks for mean velocities",
        ),
        ({"depth_tolerance": 0.1, "depth": "plain"}, "a tolerance chooses the depth"),
    ],
    ids=str,
)
def test_how_a_run_is_sampled_must_fit_its_network_before_it_is_trained(options, message):
    sample = odelt.SampleConfig(**{"time": EIGHT} | options)
    with pytest.raises(odelt.InputError, match=message):
        dataclasses.replace(preset("digits"), sample=sample)


def test_a_tolerance_of_the_depth_needs_a_network_that_is_not_told_it():
    config = of_type(preset("digits"), "length-consistency")
    with pytest.raises(odelt.InputError, match="this network is told its depth beforehand"):
        dataclasses.replace(config, sample=odelt.SampleConfig(depth_tolerance=0.1))


NO_SCORE = {
    "icfm": "has sigma 0.01",
    "otcfm": "has coupling optimal",
    "sifm": "trains along trigonometric ones",
    "progressive": "learns mean velocities of steps",
    "consistency": "learns velocities to the end of a path",
    "consistency-distillation": "learns velocities to the end of a path",
}
"""The training types from whose velocity the score does not follow, and what is said of them."""


@pytest.mark.parametrize("depths", ["alone", *DEPTH_TYPES])
@pytest.mark.parametrize("name", TRAIN_TYPES)
def test_diffusion_is_refused_where_the_score_does_not_follow_from_the_velocity(name, depths):
    config = dataclasses.replace(preset("moons"), objective=TRAIN_TYPES[name])
    config = config if depths == "alone" else of_type(config, depths)
    config.check_sampling(0.0)
    if name not in NO_SCORE:
        config.check_sampling(0.0, 1.0)
        return
    with pytest.raises(odelt.InputError, match=f"independent noise and data; .*{NO_SCORE[name]}"):
        config.check_sampling(0.0, 1.0)
    with pytest.raises(odelt.InputError, match="leave out diffusion"):
        dataclasses.replace(config, sample=odelt.SampleConfig(diffusion=1.0))


@pytest.mark.parametrize(
    ("option", "value"), [("contrast", 0.05), ("sigma_min", 0.5), ("coupling", "nearest")]
)
def test_the_option_that_bars_diffusion_is_named(option, value):
    flow = FlowMatching(**{option: value})
    for objective in (flow, LengthConsistency(flow), SelfAlignment(DeepSupervision(flow))):
        assert objective.no_score == f"has {option} {value}"


def test_a_run_takes_numbers_of_numpy_and_refuses_other_types(any_types, tmp_path):
    numbers: dict[str, Any] = {"steps": np.int64(7), "frozen": [], "seed": np.array(3)}
    config = dataclasses.replace(TINY_RUN, **numbers)
    assert config == dataclasses.replace(TINY_RUN, steps=7, seed=3)
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    rate: Any = np.float32(0.25)
    assert type(OptimizerConfig(learning_rate=rate).learning_rate) is float
    wrong: dict[str, Any] = {"steps": 2.5, "keep": "3", "data": "digits", "sharding": "ddp"}
    for name, value in wrong.items():
        with pytest.raises(odelt.InputError, match=f"^{name} must be "):
            dataclasses.replace(TINY_RUN, **{name: value})
    with pytest.raises(odelt.InputError, match="threads must be a whole number"):
        Loading(threads=wrong["steps"])


def test_a_data_set_takes_paths_as_text_and_refuses_other_types(any_types):
    text: Any = "images"
    assert Folder(text, size=(8, 12)) == Folder(Path("images"), size=(8, 12))
    assert Shards(text) == Shards(Path("images"))
    name: Any = "moon"
    with pytest.raises(odelt.InputError, match="name must be one of moons, checkerboard"):
        Toy(name)
    share: Any = 0.1
    with pytest.raises(odelt.InputError, match="held_out must be HeldOut"):
        Npz(text, held_out=share)
