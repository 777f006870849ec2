"""Pictures to latents: what the autoencoder makes of each and its mirror image, in any share."""

import json

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.data.shards import Shards
from odelt_eqx.interop import load_autoencoder
from odelt_eqx.latents import LatentConfig, encode_shards
from tests.conftest import GOLDEN, golden_weight


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The recorded tiny autoencoder as diffusers lays it out."""
    file, folder = np.load(GOLDEN / "autoencoder_tiny.npz"), tmp_path_factory.mktemp("vae")
    weights = {n: golden_weight(n, s) for n, s in json.loads(str(file["names"])).items()}
    safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(str(file["config"]))
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Shards of 11 pictures of two classes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(11):
        path = folder / "found" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    prepare(folder / "found", folder / "shards", PrepareConfig(size=32, chunk=4, workers=1))
    return folder / "shards"


def test_latents_are_those_of_the_pictures_and_their_mirror_images(pictures, autoencoder, tmp_path):
    out = tmp_path / "latents"
    assert encode_shards(pictures, out, LatentConfig(autoencoder, batch_size=3)) == [
        out / "index.json"
    ]
    network = load_autoencoder(autoencoder)
    for split in ("train", "held-out"):
        images, latents = Shards(pictures).open(split), Shards(out).open(split)
        assert len(images) == len(latents)
        assert images.class_names == latents.class_names == ("a", "b")
        for index in range(len(images)):
            picture = images[index]
            mean, log_variance = network.encode(picture["image"][None])
            assert latents.image_shape == mean.shape[1:]
            assert latents[index]["label"] == picture["label"]
            np.testing.assert_allclose(latents[index]["image"], mean[0], atol=2e-3)
            mirrored, _ = network.encode(picture["image"][None, :, ::-1])
            rngs = [np.random.default_rng(seed) for seed in range(40)]
            draws = [latents.draw(index, rng, flip=True)["image"] for rng in rngs]
            near = lambda draw, mean: np.abs(draw - mean[0]).mean()
            flipped = sum(near(draw, mirrored) < near(draw, mean) for draw in draws)
            assert 8 < flipped < 32
            plain = [latents.draw(index, rng, flip=False)["image"] for rng in rngs]
            spread = np.std(plain, axis=0) / np.exp(log_variance[0] / 2)
            np.testing.assert_allclose(spread.mean(), 1, atol=0.1)


def test_shares_and_interruptions_make_the_same_files(pictures, autoencoder, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    encode_shards(pictures, whole, LatentConfig(autoencoder, batch_size=4))
    assert encode_shards(pictures, shared, LatentConfig(autoencoder, 4, part="2/2")) == []
    done = {path: path.stat().st_mtime_ns for path in shared.glob("*.array_record")}
    assert done
    with pytest.raises(odelt.InputError, match="has no index"):
        Shards(shared).open("train")
    encode_shards(pictures, shared, LatentConfig(autoencoder, 4))
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    files = {path.name: path.read_bytes() for path in whole.glob("*.array_record")}
    assert files == {path.name: path.read_bytes() for path in shared.glob("*.array_record")}
    assert (whole / "index.json").read_text() == (shared / "index.json").read_text()


def test_what_does_not_fit_is_one_line(pictures, autoencoder, tmp_path):
    out = tmp_path / "latents"
    encode_shards(pictures, out, LatentConfig(autoencoder))
    with pytest.raises(odelt.InputError, match="must hold pictures with 3 channels"):
        encode_shards(out, tmp_path / "again", LatentConfig(autoencoder))
    other = tmp_path / "found" / "a.png"
    other.parent.mkdir()
    Image.new("RGB", (32, 32)).save(other)
    prepare(other.parent, tmp_path / "shards", PrepareConfig(size=32, workers=1))
    with pytest.raises(odelt.InputError, match="begun with other pictures; choose another folder"):
        encode_shards(tmp_path / "shards", out, LatentConfig(autoencoder))
