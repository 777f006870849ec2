"""What the tests of evaluation share: a judge of digits, a short run on points of the plane."""

from pathlib import Path

import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.data import Toy, digits
from odelt_eqx.evaluation.features import Pixels
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.objective import FlowMatching
from odelt_eqx.training.train import train

NETWORK = {"hidden_size": 8, "mlp_ratio": 2, "depth": 2, "depth_min": 1, "depth_group": 1}


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge(Pixels().open((8, 8, 1)), digits("train"), digits("held-out"), classes=10)


def train_points(
    run: Path,
    sample: odelt.SampleConfig,
    name: str,
    classes: int | None,
    class_dropout: float = 0.1,
) -> Path:
    config = TrainConfig(
        model=odelt.VectorNetConfig(size=2, num_classes=classes, **NETWORK),
        objective=FlowMatching(class_dropout),
        optimizer=OptimizerConfig(warmup=1),
        data=Toy(name, count=400),
        sample=sample,
        steps=2,
        batch_size=16,
        eval_every=2,
        save_every=2,
    )
    train(config, run)
    return run


@pytest.fixture(scope="session")
def moons(tmp_path_factory) -> Path:
    """A run on two moons, whose samples take three steps at depth 1."""
    sample = odelt.SampleConfig(time=odelt.FixedSteps(steps=3), depth=1)
    return train_points(tmp_path_factory.mktemp("runs") / "moons", sample, "moons", 2)


@pytest.fixture(scope="session")
def checkerboard(tmp_path_factory) -> Path:
    """A run on a checkerboard, of a network without conditions."""
    run = tmp_path_factory.mktemp("runs") / "checkerboard"
    return train_points(run, odelt.SampleConfig(), "checkerboard", None)
