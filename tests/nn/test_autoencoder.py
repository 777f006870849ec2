"""The autoencoder: the numbers of diffusers' `AutoencoderKL`, recorded in `tests/golden`."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from odelt_eqx.errors import InputError
from odelt_eqx.interop import autoencoder_from_weights, load_autoencoder
from odelt_eqx.interop.autoencoder import _infer_config
from odelt_eqx.nn import Autoencoder, AutoencoderConfig
from odelt_eqx.nn.classifier import ConvNetConfig
from tests.conftest import GOLDEN, golden_weight

SCALE = 0.18215


def recorded(name: str):
    """The recorded arrays, the weights by name, and the config as diffusers writes it."""
    file = np.load(GOLDEN / f"autoencoder_{name}.npz")
    shapes = json.loads(str(file["names"]))
    return file, {n: golden_weight(n, s) for n, s in shapes.items()}, str(file["config"])


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


def error(ours, reference) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(ours - nhwc(reference)).max() / np.abs(reference).max())


@pytest.fixture(scope="module")
def tiny():
    return recorded("tiny")


@pytest.fixture
def folder(tmp_path, tiny):
    """The tiny network as diffusers lays it out."""
    safetensors.numpy.save_file(tiny[1], tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(tiny[2])
    return tmp_path


def check_parity(autoencoder, file, scale: Any = SCALE, shift: Any = 0.0, tolerance=1e-4):
    """diffusers' pipelines apply scale and shift; its network, which was recorded, does not."""
    scale, shift = np.asarray(scale, np.float32), np.asarray(shift, np.float32)
    mean, log_variance = autoencoder.encode(nhwc(file["image_nchw"]))
    assert error(mean / scale + shift, file["mean_nchw"]) < tolerance
    assert error(log_variance - 2 * np.log(scale), file["logvar_nchw"]) < tolerance
    images = autoencoder.decode((nhwc(file["latent_nchw"]) - shift) * scale)
    assert error(images, file["decoded_nchw"]) < tolerance


def parameters(module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(module))


def test_a_small_network_matches_the_recording(folder, tiny):
    check_parity(load_autoencoder(folder), tiny[0])


@pytest.mark.thorough
def test_the_full_network_matches_the_recording():
    file, weights, _ = recorded("sd")
    assert _infer_config(weights, Path("sd.safetensors")) == AutoencoderConfig()
    autoencoder = autoencoder_from_weights(weights, AutoencoderConfig())
    assert parameters(autoencoder) == 83_653_863
    check_parity(autoencoder, file)


def test_16_channels_scale_and_shift_and_no_quant_convs(tmp_path):
    """As in Stable Diffusion 3 and FLUX."""
    file, weights, text = recorded("16")
    path, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    safetensors.numpy.save_file(weights, path)
    config.write_text(text)
    autoencoder = load_autoencoder(tmp_path)
    assert autoencoder.config.latent_channels == 16
    check_parity(autoencoder, file, 1.5305, 0.0609, tolerance=1e-5)
    mean, std = np.linspace(-1, 1, 16).tolist(), np.linspace(0.5, 2, 16).tolist()
    per_channel = {"shift_factor": None, "latents_mean": mean, "latents_std": std}
    config.write_text(json.dumps(json.loads(text) | per_channel))
    check_parity(load_autoencoder(tmp_path), file, 1.5305 / np.array(std), mean, tolerance=1e-5)
    config.unlink()
    with pytest.raises(InputError, match=r"of 16 channels; put the config\.json published with it"):
        load_autoencoder(path)


def test_without_a_config_the_sizes_are_those_of_the_arrays(folder):
    (folder / "config.json").unlink()
    autoencoder = load_autoencoder(folder / "diffusion_pytorch_model.safetensors")
    assert autoencoder.config == AutoencoderConfig((32, 64), layers_per_block=1)


def test_the_log_variance_is_clipped_before_it_is_scaled(folder, tiny):
    weights = tiny[1] | {"quant_conv.bias": np.array(4 * [0] + 2 * [1e3] + 2 * [-1e3], np.float32)}
    safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    _, log_variance = load_autoencoder(folder).encode(jnp.zeros((1, 8, 8, 3)))
    bounds = np.array([20, 20, -30, -30]) + 2 * np.log(SCALE)
    np.testing.assert_allclose(log_variance, np.broadcast_to(bounds, (1, 4, 4, 4)), rtol=1e-6)


def test_samples_have_the_moments_of_the_encoder(folder, tiny):
    autoencoder = load_autoencoder(folder)
    image = jnp.asarray(nhwc(tiny[0]["image_nchw"])[:1, :4, :4])
    mean, log_variance = autoencoder.encode(image)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: autoencoder.draw_latents(image, key)[0])(keys)
    deviation = np.exp(log_variance[0] / 2)
    assert np.max(np.abs(drawn.mean(0) - mean[0]) / deviation) < 5 / np.sqrt(4000)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.07)


def test_old_names_half_precision_and_the_vae_subfolder_are_read(folder, tiny, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, array in tiny[1].items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        weights[name] = array.astype(np.float16)
    pipeline = tmp_path / "pipeline" / "vae"
    pipeline.mkdir(parents=True)
    (folder / "config.json").rename(pipeline / "config.json")
    safetensors.numpy.save_file(weights, pipeline / "diffusion_pytorch_model.safetensors")
    autoencoder = load_autoencoder(pipeline.parent)
    assert {leaf.dtype for leaf in jax.tree.leaves(autoencoder)} == {np.dtype("float32")}
    images = autoencoder.decode(SCALE * nhwc(tiny[0]["latent_nchw"]))
    assert error(images, tiny[0]["decoded_nchw"]) < 5e-3  # the error of half precision


def test_each_error_is_one_line(folder, tiny):
    file = folder / "diffusion_pytorch_model.safetensors"
    config = json.loads(tiny[2])

    def refused(weights, config, *words):
        safetensors.numpy.save_file(weights, file)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError) as caught:
            load_autoencoder(folder)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), caught.value

    weights = dict(tiny[1])
    bias = weights.pop("decoder.conv_in.bias")
    refused(weights, config, "missing: decoder.conv_in.bias")
    refused(tiny[1] | {"loss.logvar": bias}, config, "left over: loss.logvar")
    refused(tiny[1] | {"decoder.conv_in.bias": bias[:3]}, config, "decoder.conv_in.bias (3,)")
    refused(tiny[1], config | {"layers_per_block": 2}, "missing: decoder.up_blocks.0.resnets.2")
    refused(tiny[1], config | {"block_out_channels": [32, 60]}, "norm_num_groups 8", "60")
    refused(tiny[1], config | {"use_quant_conv": False}, "left over: quant_conv.bias")
    refused(tiny[1], config | {"shift_factor": float("nan")}, "a number is not finite")
    for value in (True, "0.2"):
        refused(tiny[1], config | {"scaling_factor": value}, f"expected a number; got {value!r}")
    refused(tiny[1], config | {"latents_mean": [0] * 4}, "go together")
    both = {"latents_mean": [0] * 4, "latents_std": [1, 0, 1, 1]}
    refused(tiny[1], config | both, "division by zero")
    both = {"latents_mean": [0] * 3, "latents_std": [1] * 3}
    refused(tiny[1], config | both, "one number or 4; got 3")
    refused(tiny[1], config | {"down_block_types": ["AttnDown"]}, "AttnDown")
    refused(tiny[1], [], "config.json is not a config")
    (folder / "config.json").unlink()
    weights = {n: a[:33] if n.endswith("0.conv1.weight") else a for n, a in tiny[1].items()}
    safetensors.numpy.save_file(weights, file)
    with pytest.raises(InputError, match="multiples of norm_num_groups"):
        load_autoencoder(file)
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"is not a \.safetensors file"):
        load_autoencoder(file)
    file.unlink()
    with pytest.raises(InputError, match="there is no diffusion_pytorch_model"):
        load_autoencoder(folder)
    with pytest.raises(InputError, match="there is no file"):
        load_autoencoder(folder / "nothing")


def test_the_hub_is_an_extra(monkeypatch, folder, tiny):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'odelt-eqx\[hub\]'"):
        load_autoencoder("hub:someone/something")


def test_a_folder_is_downloaded_from_the_hub(monkeypatch, folder, tiny):
    asked = []

    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            asked.append((name, allow_patterns))
            if name == "nobody/nothing":
                raise RuntimeError("404:\nnot found")
            return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert load_autoencoder("hub:someone/something").config.block_out_channels == (32, 64)
    assert asked[0][0] == "someone/something"
    assert "vae/config.json" in asked[0][1]
    with pytest.raises(InputError, match="hub:nobody/nothing cannot be downloaded: 404: not found"):
        load_autoencoder("hub:nobody/nothing")


def test_arrays_and_numbers_of_another_type_are_refused(any_types):
    autoencoder = Autoencoder(AutoencoderConfig((8, 8), 1, 4), key=jax.random.key(0))
    for shape in ((1, 4, 4, 1), (1, 4, 4, 4), (4, 4, 3)):
        with pytest.raises(InputError, match=r"images must have shape \(batch, height, width, 3\)"):
            autoencoder.encode(jnp.zeros(shape))
    with pytest.raises(InputError, match=r"latents must have shape .* 4\); got \(4, 4, 4\)"):
        autoencoder.decode(jnp.zeros((4, 4, 4)))
    numbers: dict[str, Any] = {"block_out_channels": [np.int64(8), 8], "norm_num_groups": 4}
    assert AutoencoderConfig(**numbers) == AutoencoderConfig((8, 8), norm_num_groups=4)
    for field, wrong in {
        "layers_per_block": 1.5,
        "block_out_channels": 8,
        "scaling_factor": True,
        "use_quant_conv": "yes",
    }.items():
        with pytest.raises(InputError, match=f"{field} must be .*; got {wrong!r}"):
            AutoencoderConfig(**{field: wrong})
    shape: Any = [8, np.int64(8), 1]
    assert ConvNetConfig(shape, 10) == ConvNetConfig((8, 8, 1), 10)
    shape = (8, 8)
    with pytest.raises(InputError, match=r"image_shape must be 3 whole numbers; got \(8, 8\)"):
        ConvNetConfig(shape, 10)


def test_impossible_shapes_are_refused():
    config = AutoencoderConfig((8, 8), 1, 4)
    autoencoder = Autoencoder(config, key=jax.random.key(0))
    with pytest.raises(InputError, match=r"multiples of 2 pixels .* 5 x 4"):
        autoencoder.encode(jnp.zeros((1, 5, 4, 3)))
    with pytest.raises(InputError, match="4 channels; got 3"):
        autoencoder.decode(jnp.zeros((1, 4, 4, 3)))
    for wrong, message in (
        ({"block_out_channels": ()}, "block_out_channels must be multiples"),
        ({"layers_per_block": 0}, "layers_per_block must be at least 1; got 0"),
        ({"scaling_factor": 0.0}, "scaling_factor must be positive; got 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            AutoencoderConfig(**wrong)
