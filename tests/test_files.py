"""Files that the system refuses to write, or that are none."""

import os
import resource
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.array_files import read_arrays, write_arrays
from odelt_eqx.data.raw import find_raw_images
from odelt_eqx.data.records import Records, write_shard
from odelt_eqx.evaluation.figures import save_figure
from odelt_eqx.files import atomic_folder, atomic_write, temporary_path, write_text
from odelt_eqx.nn import stacked
from tests.conftest import TINY
from tests.data.makers import write_images


@pytest.fixture
def limit():
    """No file may be larger than 1,000 bytes, as on a disk that is nearly full."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def write_figure(path):
    from matplotlib.figure import Figure

    save_figure(Figure(), path)


WRITERS = {
    "text.txt": lambda path: write_text(path, "x" * 5000),
    "arrays.npz": lambda path: write_arrays(path, {"x": np.zeros(5000)}),
    "network.safetensors": lambda path: odelt.save_safetensors(
        stacked(TINY.build(key=jax.random.key(0))), path
    ),
    "figure.png": write_figure,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_is_named_and_leaves_nothing(name, tmp_path, limit):
    """And a file that was there before stays."""
    path = tmp_path / name
    path.write_bytes(b"before")
    with pytest.raises((OSError, odelt.InputError)) as caught:
        WRITERS[name](path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"before"


def test_pipes_devices_and_links_to_nothing_are_left_out(tmp_path):
    """Reading a pipe would wait, and reading a device might never end."""
    write_images(tmp_path, count=2)
    usual = find_raw_images(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "labels.txt")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match=r"labels\.txt and 3 more left out: no file"):
        found = find_raw_images(tmp_path)
    assert found.names == usual.names


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_that_may_unpack_to_any_size_are_refused_in_one_line(tmp_path, method):
    """Python unpacks these methods at once, whatever size the member claims."""
    write_arrays(tmp_path / "a.npz", {"x": np.zeros(10), "y": np.zeros(10)})
    with (
        zipfile.ZipFile(tmp_path / "a.npz") as usual,
        zipfile.ZipFile(tmp_path / "b.npz", "w", method) as other,
    ):
        other.writestr("x.npy", usual.read("x.npy"))
        other.writestr("y.npy", usual.read("y.npy"), zipfile.ZIP_DEFLATED)
    with pytest.raises(odelt.InputError, match=r"x\.npy is compressed by another method than defl"):
        read_arrays(tmp_path / "b.npz", "a file of arrays", "x", "y")
    assert read_arrays(tmp_path / "b.npz", "a file of arrays", "y")["y"].tolist() == [0] * 10


def test_a_hard_link_in_a_tar_is_the_file_it_names(tmp_path):
    write_images(tmp_path / "images", count=2)
    first, *_ = sorted(path for path in (tmp_path / "images").rglob("*.png"))
    os.link(first, first.with_name("second-name.png"))
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "images", arcname="images")
        assert any(member.islnk() for member in tar.getmembers())
    found = find_raw_images(archive)
    folder = find_raw_images(tmp_path / "images")
    contents = lambda images: sorted(map(images.read, images.locations))
    assert contents(found) == contents(folder)


def write_twice(writer, path):
    """Write a file, or a folder, while it is being written."""
    with writer(path) as temporary:
        kept = temporary / "kept" if temporary.is_dir() else temporary
        kept.write_text("first")
        with pytest.raises(odelt.InputError, match=r"another process is writing"), writer(path):
            pass
        assert kept.read_text() == "first"
    return path / "kept" if path.is_dir() else path


@pytest.mark.parametrize("writer", [atomic_write, atomic_folder])
def test_two_do_not_write_to_one_path_at_once(tmp_path, writer):
    """What a killed process has left is nobody's."""
    left = temporary_path(tmp_path / "result")
    if writer is atomic_folder:
        (left / "part").mkdir(parents=True)
    else:
        left.write_text("left by a process that was killed")
    assert write_twice(writer, tmp_path / "result").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_text_is_written_by_one_after_another(tmp_path):
    """As the plan of a folder is that several processes prepare, a part each."""
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: write_text(tmp_path / "plan", 1000 * f"{i % 3}"), range(200)))
    (written,) = tmp_path.iterdir()
    assert written.read_text() in {1000 * digit for digit in "012"}


def test_two_do_not_write_one_shard_at_once(tmp_path):
    pytest.importorskip("array_record")
    with write_shard(tmp_path / "a.array_record") as write:
        write(b"first")
        again = write_shard(tmp_path / "a.array_record")
        with pytest.raises(odelt.InputError, match="another process is writing"), again:
            pass
    assert Records(tmp_path, {"a.array_record": 1})[0] == b"first"
