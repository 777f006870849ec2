"""Runs on data in files, and resumed with other readers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.config import load_config
from odelt_eqx.data import Idx, Loading, Npz
from odelt_eqx.presets import preset
from odelt_eqx.training.info import describe
from odelt_eqx.training.train import train
from tests.conftest import TINY_RUN
from tests.data.makers import write_fashion
from tests.training.conftest import POINTS_RUN


def test_too_few_held_out_examples_are_one_line(tmp_path):
    data = Idx(write_fashion(tmp_path / "data", held_out=4))
    model = dataclasses.replace(TINY_RUN.model, image_size=28)
    config = dataclasses.replace(TINY_RUN, data=data, model=model)
    with pytest.raises(odelt.InputError, match="4 examples are held out, too few to measure"):
        train(config, tmp_path / "run")


@pytest.mark.thorough
def test_the_fashion_preset_learns_from_idx_files(tmp_path):
    config = preset("fashion")
    model = dataclasses.replace(
        config.model, hidden_size=32, depth=2, depth_min=1, depth_group=1, patch_size=7
    )
    optimizer = dataclasses.replace(config.optimizer, learning_rate=3e-3, warmup=10)
    folder = write_fashion(tmp_path / "idx", train=160)
    changes = {"model": model, "optimizer": optimizer, "steps": 200, "batch_size": 16}
    data = dataclasses.replace(config.data, folder=folder)
    config = dataclasses.replace(
        config, **changes, data=data, eval_every=50, save_every=200, log_every=200
    )
    run = tmp_path / "run"
    train(config, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert "10: T-shirt/top, Trouser" in describe(run)
    moved = dataclasses.replace(config, data=dataclasses.replace(data, folder=tmp_path / "moved"))
    shutil.copytree(folder, tmp_path / "moved")
    train(moved, run, resume=True)
    assert load_config(run / "config.json") == moved
    (tmp_path / "moved" / "train-images-idx3-ubyte.gz").unlink()
    assert "has no file train-images-idx*" in describe(run)


@pytest.mark.thorough
def test_a_run_resumes_with_other_readers_and_ends_the_same(points_run, tmp_path):
    """Stopped within an epoch and resumed with a worker process: the same weights, bit for bit."""
    run = tmp_path / "run"
    shutil.copytree(points_run, run)
    shutil.rmtree(run / "checkpoints" / "6")
    readers = Loading(workers=1, threads=1, buffer=2)
    train(dataclasses.replace(POINTS_RUN, loading=readers), run, resume=True)
    whole, resumed = (jax.tree.leaves(odelt.load(path)) for path in (points_run, run))
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(odelt.InputError, match=r"loading\.flip is True, was False"):
        train(dataclasses.replace(POINTS_RUN, loading=Loading(flip=True)), run, resume=True)


def test_held_out_examples_of_another_shape_are_refused_before_training(tmp_path):
    for name, size in {"a": 8, "b": 9}.items():
        images, labels = np.zeros((40, size, size), np.uint8), np.arange(40) % 10
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    data = Npz(tmp_path / "a.npz", held_out_path=tmp_path / "b.npz")
    with pytest.raises(
        odelt.InputError, match=r"of shape \(9, 9, 1\), and others of shape \(8, 8, 1"
    ):
        train(dataclasses.replace(TINY_RUN, data=data), tmp_path / "run")
