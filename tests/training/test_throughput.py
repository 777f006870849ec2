"""Throughput by a fake clock, model FLOPs, and memory under its right name."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from odelt_eqx.config import LoggingConfig
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.objective import FlowMatching
from odelt_eqx.training.throughput import Throughput, memory, step_flops
from tests.conftest import TINY_RUN


def test_steps_are_timed_apart_from_compilation_and_from_what_is_not_training(monkeypatch):
    now = 0.0
    monkeypatch.setattr("odelt_eqx.training.throughput.time.monotonic", lambda: now)
    timed = Throughput(dataclasses.replace(TINY_RUN, logging=LoggingConfig(peak_flops=1e9)))
    now = 100.0  # the first step compiles
    timed.advance(())
    assert "step_seconds" not in timed.metrics()
    for _ in range(4):
        timed.advance(())
    now = 102.0
    metrics = timed.metrics()
    assert metrics["step_seconds"] == 0.5
    assert metrics["examples_per_second"] == TINY_RUN.batch_size / 0.5
    assert metrics["model_flops_utilization"] == step_flops(TINY_RUN) / 0.5 / 1e9
    now = 150.0  # previews are sampled
    timed.restart()
    timed.advance(())
    now = 150.25
    assert timed.metrics()["step_seconds"] == 0.25


def test_the_time_of_a_step_is_told_once_it_is_known(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr("odelt_eqx.training.throughput.time.monotonic", lambda: now)
    timed = Throughput(dataclasses.replace(TINY_RUN, steps=200), done=94)
    for step in range(10):
        now = 100.0 + 2 * step
        timed.advance(())
    assert capsys.readouterr().err == "note: 2 s a step, 03:20 to the last\n"


def test_without_a_peak_there_is_no_utilisation():
    timed = Throughput(TINY_RUN)
    for _ in range(2):
        timed.advance(())
    assert "model_flops_utilization" not in timed.metrics()


def test_a_step_is_three_velocities_of_each_example_at_its_own_depth():
    shallow, deep = (velocity_flops(TINY_RUN.model, depth) for depth in (2, 4))
    assert step_flops(TINY_RUN) == 3 * 8 * (shallow + deep)
    assert step_flops(dataclasses.replace(TINY_RUN, objective=FlowMatching())) == 3 * 16 * deep


def test_memory_is_called_what_it_is(monkeypatch):
    assert 10e6 < memory()["process_peak_resident_bytes"] < 1e12
    devices = [SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (5, 7)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory() == {"device_peak_bytes": 7}


@pytest.mark.parametrize("batch_size", [3, 4])
def test_an_uneven_share_of_the_depths_goes_to_the_deepest(batch_size):
    config = dataclasses.replace(TINY_RUN, batch_size=batch_size)
    shallow, deep = (velocity_flops(config.model, depth) for depth in (2, 4))
    assert step_flops(config) == 3 * (2 * deep + (batch_size - 2) * shallow)
