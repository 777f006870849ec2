"""Networks on the Hugging Face Hub, with a folder in its place."""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.evaluation.report import describe_run
from odelt_eqx.interop.safetensors import model_card
from odelt_eqx.training.weights import convert, read_weights
from tests.conftest import TINY_RUN


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in with the client's three calls, which keeps repositories as OWNER/NAME folders."""
    root = tmp_path / "hub"

    class Client:
        def create_repo(self, name, exist_ok=False):
            (root / name).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path):
            if repo_id == "nobody/closed":
                raise RuntimeError("403:\nforbidden")
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    class Hub:
        HfApi = Client

        @staticmethod
        def snapshot_download(name, allow_patterns):
            if not (root / name).is_dir():
                raise RuntimeError("404: not found")
            return str(root / name)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    return root


def assert_same(a, b):
    assert a.config == b.config
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_network_goes_there_and_back(hub, model):
    odelt.save_safetensors(model, "hub:someone/tiny")
    files = {path.name for path in (hub / "someone" / "tiny").iterdir()}
    assert files == {"model.safetensors", "README.md"}
    assert_same(odelt.load_safetensors("hub:someone/tiny"), model)
    assert_same(read_weights("hub:someone/tiny")[1], model)


def test_what_a_card_says_can_be_run(hub, model):
    odelt.save_safetensors(model, "hub:someone/tiny")
    card = (hub / "someone" / "tiny" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: odelt-eqx\n")
    assert '"hidden_size": 16' in card
    names = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert names["samples"].shape == (4, 8, 8, 1)


def test_a_run_is_published_with_its_classes_and_its_grid(hub, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "grid.md").write_text("| depth | Frechet |\n|---|---|\n| 2 | 1.5 |\n")
    convert(run, Path("hub:someone/digits"), TINY_RUN, depth=2, card=describe_run(run))
    card = (hub / "someone" / "digits" / "README.md").read_text()
    assert "## Classes\n\n- 0: 0\n- 1: 1\n" in card
    assert "## Measured\n\n| depth | Frechet |" in card
    assert_same(odelt.load_safetensors("hub:someone/digits"), odelt.truncate(odelt.load(run), 2))
    convert(Path("hub:someone/digits"), tmp_path / "back", TINY_RUN)
    assert odelt.load(tmp_path / "back").depths == (2,)


@pytest.mark.thorough
def test_a_network_of_vectors_without_classes_has_a_card_that_runs(hub):
    config = odelt.VectorNetConfig(size=2, hidden_size=8, depth=2, depth_min=2, depth_group=2)
    network = config.build(key=jax.random.key(0))
    odelt.save_safetensors(network, "hub:someone/points")
    names = {}
    exec(model_card(network, "hub:someone/points").split("```python\n")[1].split("```")[0], names)
    assert names["samples"].shape == (4, 2)


def test_a_network_whose_condition_is_a_vector_has_a_card_that_runs(hub):
    shape = {"size": 2, "hidden_size": 8, "depth": 2, "depth_min": 2, "depth_group": 2}
    network = odelt.VectorNetConfig(**shape, condition_size=3).build(key=jax.random.key(0))
    odelt.save_safetensors(network, "hub:someone/points")
    card = (hub / "someone" / "points" / "README.md").read_text()
    names = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert names["samples"].shape == (4, 2)


def test_errors_of_the_hub_are_one_line(hub, model, monkeypatch):
    with pytest.raises(odelt.InputError, match="hub:nobody/none cannot be downloaded: 404: not"):
        odelt.load_safetensors("hub:nobody/none")
    with pytest.raises(odelt.InputError, match="closed cannot be written: 403: forbidden"):
        odelt.save_safetensors(model, "hub:nobody/closed")
    for name in ("hub:name", "hub:a/b/c", "hub:/b"):
        with pytest.raises(odelt.InputError, match=f"{name} is not a repository: write hub:OWNER"):
            odelt.load_safetensors(name)
    (hub / "someone" / "empty").mkdir(parents=True)
    with pytest.raises(odelt.InputError, match="there is no file"):
        odelt.load_safetensors("hub:someone/empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(odelt.InputError, match=r"pip install 'odelt-eqx\[hub\]'"):
        odelt.save_safetensors(model, "hub:someone/tiny")
