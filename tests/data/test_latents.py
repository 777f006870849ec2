"""Images to shards of latents, from which training samples, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.data import HeldOut, Shards, latents
from odelt_eqx.data.latents import decode_in_chunks, prepare_latents
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.data.records import load_index
from odelt_eqx.nn.autoencoder import Autoencoder, AutoencoderConfig
from tests.data.makers import write_images

SHAPE = AutoencoderConfig((4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=2)
SEED = 2
"""A seed by which an image is mirrored if `flip` is set."""


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder(SHAPE, key=jax.random.key(0))


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", count=5, size=(8, 8))


def config(**changes):
    own = {"size": 8, "held_out": HeldOut(0.3), "chunk": 4, "workers": 1}
    return PrepareConfig(**{**own, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}


def test_a_record_has_the_moments_of_the_image_and_its_mirror_image(autoencoder, images, tmp_path):
    (path,) = prepare_latents(images, tmp_path / "out", config(), autoencoder, batch_size=3)
    assert load_index(path.parent).layout.shape == (2, 4, 4, 4)
    ours, plain = (Shards(f).open("train") for f in (path.parent, path.parent / "images"))
    assert len(ours) == len(plain)
    for index in range(len(ours)):
        image = plain[index]["x"][None]
        for flip, shown in ((False, image), (True, image[:, :, ::-1])):
            mean, log_variance = map(np.asarray, autoencoder.encode(shown))
            rng = np.random.default_rng(SEED)
            assert not flip or rng.random() < 0.5
            noise = rng.standard_normal((4, 4, 2), np.float32)
            expected = mean[0] + np.exp(log_variance[0] / 2) * noise
            drawn = ours.draw(index, np.random.default_rng(SEED), flip)
            np.testing.assert_allclose(drawn["x"], expected, atol=2e-3)
            assert drawn["condition"] == plain[index]["condition"]


def test_latents_of_images_that_are_no_squares(autoencoder, images, tmp_path):
    wide = config(size=(8, 12))
    (path,) = prepare_latents(images, tmp_path / "out", wide, autoencoder)
    latents = Shards(path.parent).open("train")
    assert latents.shape == (4, 6, 2)
    assert decode_in_chunks(autoencoder, latents[0]["x"][None]).shape == (1, 8, 12, 3)
    assert prepare_latents(images, tmp_path / "out", wide, autoencoder) == [path]  # resumed


def test_encoding_resumes_and_is_shared_out(autoencoder, images, tmp_path, monkeypatch):
    shards, whole, parts = tmp_path / "shards", tmp_path / "whole", tmp_path / "parts"
    prepare(images, shards, config())
    prepare_latents(shards, whole, config(), autoencoder, batch_size=4)
    real, calls = latents._moments, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(latents, "_moments", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_latents(shards, parts, config(part="1/2"), autoencoder, batch_size=4)
    assert len(list(parts.glob("*.array_record"))) == 1
    assert prepare_latents(shards, parts, config(part="1/2"), autoencoder, batch_size=4) == []
    prepare_latents(shards, parts, config(part="2/2"), autoencoder, batch_size=4)
    assert contents(parts) == contents(whole)


def test_other_images_or_weights_are_refused_in_one_line(autoencoder, images, tmp_path):
    with pytest.raises(odelt.InputError, match="multiple of 2, in 3 channels"):
        prepare_latents(images, tmp_path / "odd", config(size=7), autoencoder)
    with pytest.raises(odelt.InputError, match="batch_size must be at least 1; got 0"):
        prepare_latents(images, tmp_path / "out", config(), autoencoder, batch_size=0)
    out = tmp_path / "out"
    prepare_latents(images, out, config(), autoencoder)
    other = Autoencoder(SHAPE, key=jax.random.key(1))
    with pytest.raises(odelt.InputError, match="was begun with other autoencoder; choose another"):
        prepare_latents(images, out, config(), other)
    with pytest.raises(odelt.InputError, match="holds latents"):
        prepare_latents(out, tmp_path / "twice", config(), autoencoder)
    with pytest.raises(odelt.InputError, match="exists and is not a folder of shards"):
        prepare_latents(out / "images", images, config(), autoencoder)


def test_chunks_give_the_images_of_one_batch(autoencoder):
    z = np.random.default_rng(0).standard_normal((5, 4, 4, 2)).astype(np.float32)
    whole = autoencoder.decode(jnp.asarray(z))
    np.testing.assert_allclose(decode_in_chunks(autoencoder, z, 2), whole, atol=1e-5)
    assert decode_in_chunks(autoencoder, z[:0], 2).shape == (0, 8, 8, 3)
    with pytest.raises(odelt.InputError, match="chunk must be at least 1; got 0"):
        decode_in_chunks(autoencoder, z, 0)
