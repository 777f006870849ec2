"""A run that compiles in seconds, for tests of what surrounds the training step."""

from pathlib import Path

import pytest

import odelt_eqx as odelt
from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.data import Toy
from odelt_eqx.objective import FlowMatching
from odelt_eqx.training.train import train

EVERY_OPTION = FlowMatching(
    times="logit-normal", time_shift=2.0, coupling="nearest", candidates=2, contrast=0.05
)
"""Flow matching with what it need not do."""

POINTS_RUN = TrainConfig(
    model=odelt.VectorNetConfig(
        size=2,
        hidden_size=16,
        mlp_ratio=2,
        depth=2,
        depth_min=1,
        depth_group=1,
        num_classes=2,
        dropout=0.1,
    ),
    objective=EVERY_OPTION,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=2),
    data=Toy("moons", count=200),
    steps=6,
    batch_size=16,
    log_every=2,
    eval_every=3,
    save_every=3,
)


@pytest.fixture(scope="session")
def points_run(tmp_path_factory) -> Path:
    """The folder of `POINTS_RUN`, uninterrupted."""
    run = tmp_path_factory.mktemp("runs") / "points"
    train(POINTS_RUN, run)
    return run
