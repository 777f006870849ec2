"""Systems that lack what Linux has: simulated, as macOS and Windows are not at hand."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.data import Folder, Npz, Shards
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.evaluation.samples import SampleRequest, save_samples
from odelt_eqx.files import lock
from odelt_eqx.training.train import train
from tests.data.makers import write_images, write_shards
from tests.training.conftest import POINTS_RUN

MISSING = (
    *("fcntl", "resource", "array_record", "array_record.python"),
    *("array_record.python.array_record_data_source", "array_record.python.array_record_module"),
)
MODULES = """
import os, platform, sys
system = platform.system
platform.system = lambda: "Windows"  # where grain needs no array_record
sys.modules |= dict.fromkeys({missing})
import grain
platform.system = system
del os.sched_getaffinity, os.setsid
import odelt_eqx, odelt_eqx.cli, odelt_eqx.data.prepare, odelt_eqx.evaluation.report
from odelt_eqx.training.train import train
print(odelt_eqx.data.prepare.PrepareConfig().workers)
"""


@pytest.fixture
def other_system(monkeypatch):
    """A system without these modules and functions."""
    for name in MISSING:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("sched_getaffinity", "setsid"):
        monkeypatch.delattr(os, name, raising=False)


def test_the_package_is_imported_where_modules_are_missing():
    done = subprocess.run(
        [sys.executable, "-c", MODULES.format(missing=MISSING)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == os.cpu_count()


@pytest.mark.thorough
def test_a_run_is_trained_and_sampled_without_them(other_system, tmp_path, capfd):
    train(POINTS_RUN, tmp_path / "run")
    assert "cannot be locked here" in capfd.readouterr().err
    save_samples(tmp_path / "run", SampleRequest(count=2))


def test_images_and_arrays_are_read_without_them_and_shards_say_what_they_need(
    tmp_path, monkeypatch, request
):
    images = write_images(tmp_path / "images", count=30)
    np.savez(tmp_path / "a.npz", images=np.zeros((40, 8, 8, 1), np.uint8), labels=np.arange(40) % 2)
    shards = write_shards(tmp_path / "shards", "images", np.zeros((6, 8, 8, 3), np.uint8), [0] * 6)
    request.getfixturevalue("other_system")
    for data in (Folder(images, 8), Npz(tmp_path / "a.npz")):
        assert len(data.open("train")) > 30
    for use in (
        lambda: Shards(shards).open("train"),
        lambda: prepare(images, tmp_path / "out", PrepareConfig(size=8, workers=1)),
    ):
        with pytest.raises(odelt.InputError, match="need array_record, which is not installed"):
            use()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch, capfd, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock(tmp_path / ".lock", "training", "or stop it"):
        assert os.strerror(code) in capfd.readouterr().err
