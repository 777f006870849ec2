"""From a folder of pictures to pictures of one's own, by way of latents."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.numpy

import odelt_eqx as odelt
from odelt_eqx.data import HeldOut, Shards
from odelt_eqx.data.prepare import PrepareConfig
from odelt_eqx.evaluation.decoding import open_decoder
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.samples import SampleConfig, draw_samples
from odelt_eqx.interop import load_autoencoder
from odelt_eqx.latents import prepare_latents
from odelt_eqx.presets import preset
from odelt_eqx.training.loop import train
from tests.conftest import GOLDEN, golden_weight
from tests.data.makers import write_pictures


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The recorded tiny autoencoder as diffusers lays it out: 4 channels, a half of the size."""
    file, folder = np.load(GOLDEN / "autoencoder_tiny.npz"), tmp_path_factory.mktemp("vae")
    weights = {n: golden_weight(n, s) for n, s in json.loads(str(file["names"])).items()}
    safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(str(file["config"]))
    return str(folder)


@pytest.fixture(scope="module")
def run(autoencoder, tmp_path_factory):
    """The preset `imagenet-b`, made small, trained on the latents of a folder of pictures."""
    folder = tmp_path_factory.mktemp("latents")
    size = 4 * load_autoencoder(autoencoder).config.reduction
    pictures = write_pictures(folder / "pictures", count=60, size=(size, size))
    shaped = PrepareConfig(size=size, workers=1, held_out=HeldOut(0.3))
    prepare_latents(pictures, folder / "shards", shaped, load_autoencoder(autoencoder))
    base = preset("imagenet-b")
    model = dataclasses.replace(
        base.model, image_size=4, patch_size=2, hidden_size=16, num_heads=2, depth=4, depth_min=2,
        depth_group=2, num_classes=4,
    )  # fmt: skip
    config = dataclasses.replace(
        base, model=model, data=Shards(folder / "shards"), steps=2, batch_size=16
    )
    train(config, folder / "run")
    return folder / "run"


def test_samples_are_decoded(run, autoencoder):
    draw_samples(run, SampleConfig(count=3, autoencoder=autoencoder))
    network = load_autoencoder(autoencoder)
    with np.load(run / "samples.npz") as arrays:
        assert arrays["latents"].shape == (3, 4, 4, 4)
        expected = eqx.filter_jit(network.decode)(jax.numpy.asarray(arrays["latents"]))
        np.testing.assert_allclose(arrays["images"], expected, atol=1e-4)


def test_a_map_of_latents_is_of_their_images(run, autoencoder, tmp_path):
    config = GridConfig(steps=(1,), depths=(2,), count=24, batch_size=12, autoencoder=autoencoder)
    evaluate(run, config, tmp_path)
    table = json.loads((tmp_path / "table.json").read_text())
    side = 4 * load_autoencoder(autoencoder).config.reduction
    assert table["image_shape"] == [side, side, 3]
    assert table["cells"][0]["quality"]["frechet"] > table["bounds"]["real"]["frechet"]


def test_an_autoencoder_of_other_latents_is_refused(autoencoder):
    with pytest.raises(odelt.InputError, match="latents of 4 channels; the network makes 1"):
        open_decoder(autoencoder, preset("digits").model)
