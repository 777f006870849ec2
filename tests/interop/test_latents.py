"""Latents in the layouts of other repositories become shards, which training reads."""

import dataclasses
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import odelt_eqx as odelt
from odelt_eqx.data import HeldOut, Loading, Shards, stream
from odelt_eqx.data.prepare import PrepareConfig
from odelt_eqx.data.records import load_index
from odelt_eqx.interop import holds_latents, import_latents
from odelt_eqx.interop.latent_files import find_latents
from tests.conftest import GOLDEN
from tests.data.makers import write_images
from tests.interop.test_torch_file import FOUR, tensor_pickle, zipped

COUNT, SD = 9, 0.18215
LABELS = np.arange(COUNT) % 3


@dataclasses.dataclass
class Stored:
    """What a maker has written: the source, its views (view, count, channels, h, w), the rest."""

    source: Path
    mean: np.ndarray
    std: Any = 0.0
    labels: Any = None
    scale: Any = 1.0
    shift: Any = 0.0
    options: Any = ()


def draw(views=1, channels=4):
    return np.random.default_rng(0).normal(size=(views, COUNT, channels, 4, 6)).astype(np.float32)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def mean_std(folder, channels=4, labelled=True, **changes):
    mean = draw(channels=channels)
    std = np.exp(draw(channels=channels) / 2)
    std[0, 0, 0, 0] = 0  # which the autoencoder's bound on the log-variance forbids
    names = [f"{i // 5:05d}/img-mean-std-{i:08d}.npy" for i in range(COUNT)]
    for name, *both in zip(names, mean[0], std[0], strict=True):
        write(folder / name, np.concatenate(both))
    pairs = list(zip(names, LABELS.tolist(), strict=True)) if labelled else None
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    labels = LABELS if labelled else None
    return Stored(folder, mean, std, labels, **{"scale": SD, **changes})


def repa(folder):
    return mean_std(folder)


def repa_without_labels(folder):
    return mean_std(folder, labelled=False)


def sd3(folder):
    return mean_std(folder, 16, scale=1.5305, shift=0.0609, options=(1.5305, 0.0609))


def edm2(folder):
    stored, path = mean_std(folder / "tree"), folder / "latents.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in stored.source.rglob("*.*"):
            archive.write(file, file.relative_to(stored.source).as_posix())
    shutil.rmtree(stored.source)
    return dataclasses.replace(stored, source=path)


def fast_dit(folder):
    mean = draw()
    for i in range(COUNT):
        write(folder / f"imagenet256_features/{i}.npy", mean[0, i : i + 1])
        write(folder / f"imagenet256_labels/{i}.npy", LABELS[i : i + 1])
    return Stored(folder, mean, labels=LABELS)


def lightning_dit(folder):
    folder.mkdir()
    mean = draw(views=2)
    for number, rows in enumerate(np.split(np.arange(COUNT), [4])):
        arrays = {"latents": mean[0, rows], "latents_flip": mean[1, rows], "labels": LABELS[rows]}
        file = folder / f"latents_rank00_shard{number:03d}.safetensors"
        safetensors.numpy.save_file(arrays, file)
    shutil.copy(GOLDEN / "latents_stats.pt", folder)  # as PyTorch writes it
    scale, shift = 1 / np.array([2, 0.5, 1, 4]), np.array([0.5, -0.25, 1, 0])
    return Stored(folder, mean, labels=LABELS, scale=scale, shift=shift)


def npz_of_samples(folder):
    folder.mkdir()
    mean = draw(views=2)
    np.savez(folder / "a.npz", latents=mean[0], latents_flip=mean[1], labels=LABELS, other=[])
    return Stored(folder / "a.npz", mean, labels=LABELS)


def npz_of_moments(folder):
    folder.mkdir()
    mean, std = draw(), np.exp(draw() / 2)
    np.savez(folder / "a.npz", mean=mean[0], std=std[0])
    return Stored(folder, mean, std, scale=SD)


def npy_side_by_side(folder):
    mean = draw()
    write(folder / "latents.npy", np.asfortranarray(mean[0].astype(np.float64)))
    write(folder / "labels.npy", LABELS)
    return Stored(folder, mean, labels=LABELS)


def npy(folder):
    mean = draw()
    write(folder / "z.npy", mean[0])
    return Stored(folder / "z.npy", mean, scale=[1, 2, 3, 4], options=((1.0, 2.0, 3.0, 4.0),))


MAKERS = [
    *(repa, repa_without_labels, sd3, edm2, fast_dit, lightning_dit),
    *(npz_of_samples, npz_of_moments, npy_side_by_side, npy),
]


def config(**changes):
    return PrepareConfig(**{"held_out": HeldOut(0.5), "chunk": 4, "workers": 1, **changes})


@pytest.mark.filterwarnings("ignore:.*does not flip")
@pytest.mark.parametrize("make", MAKERS)
def test_training_draws_what_is_stored(make, tmp_path):
    stored, out = make(tmp_path / "source"), tmp_path / "out"
    assert holds_latents(stored.source)
    found = find_latents(stored.source)
    moved = pickle.loads(pickle.dumps(found.items))  # as it goes to worker processes
    for own, location in zip(found.items.locations, moved.locations, strict=True):
        np.testing.assert_array_equal(moved.read(location), found.items.read(own))
    import_latents(stored.source, out, config(), *stored.options)
    last = lambda x: np.moveaxis(np.broadcast_to(x, stored.mean.shape), 2, -1)
    mean = (last(stored.mean) - stored.shift) * stored.scale
    std = np.maximum(last(stored.std), np.exp(-15)) * stored.scale
    views, seen = len(mean), []
    assert load_index(out).layout.shape == (views, *mean.shape[2:4], 2 * mean.shape[4])
    for split in ("train", "held-out"):
        source = Shards(out).open(split)
        assert source.class_names == (("all",) if stored.labels is None else ("0", "1", "2"))
        for index in range(len(source)):
            plain = source[index]
            item = int(np.argmin(np.abs(mean[0] - plain["x"]).mean((1, 2, 3))))
            seen.append(item)
            np.testing.assert_allclose(plain["x"], mean[0, item], atol=4e-3)
            assert plain["condition"] == (0 if stored.labels is None else stored.labels[item])
            for seed in range(3):
                rng, ours = np.random.default_rng(seed), np.random.default_rng(seed)
                view = int(views == 2 and rng.random() < 0.5)
                noise = rng.standard_normal(plain["x"].shape, np.float32)
                drawn = source.draw(index, ours, flip=True)["x"]
                expected = mean[view, item] + std[view, item] * noise
                np.testing.assert_allclose(drawn, expected, rtol=4e-3, atol=6e-3)
    assert sorted(seen) == list(range(COUNT))
    batches = stream(Shards(out).open("train"), 1, seed=0, loading=Loading(flip=True))
    assert next(batches)["x"].shape == (1, *mean.shape[2:])
    batches.close()


@pytest.mark.filterwarnings("ignore:.*does not flip")
def test_held_out_latents_and_other_work_in_the_folder(tmp_path):
    train, test, out = repa(tmp_path / "train"), repa(tmp_path / "test"), tmp_path / "out"
    own = config(held_out_source=test.source)
    import_latents(train.source, out, own)
    assert load_index(out).classes == {"train": (3, 3, 3), "held-out": (3, 3, 3)}
    before = {path: path.read_bytes() for path in out.glob("*.array_record")}
    import_latents(train.source, out, own)
    assert {path: path.read_bytes() for path in out.glob("*.array_record")} == before
    with pytest.raises(odelt.InputError, match="begun with other scaling_factor; choose another"):
        import_latents(train.source, out, own, 0.13025)
    other = config(held_out_source=fast_dit(tmp_path / "other").source)
    with pytest.raises(odelt.InputError, match="hold latents of different kinds"):
        import_latents(train.source, tmp_path / "more", other)


def test_images_are_no_latents(tmp_path):
    images = write_images(tmp_path / "images", count=1)
    write(images / "cats" / "features.npy", draw())
    assert not holds_latents(images)
    assert not holds_latents(tmp_path / "nothing")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(images / "cats" / "0.png", "0.png")
    assert not holds_latents(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("__MACOSX/a.npy", b"")
    assert not holds_latents(tmp_path / "b.zip")
    content = (tmp_path / "b.zip").read_bytes()
    directory = content.index(b"PK\1\2")
    of_later_version = content[: directory + 6] + b"\xff" + content[directory + 7 :]
    (tmp_path / "b.zip").write_bytes(of_later_version)
    assert not holds_latents(tmp_path / "b.zip")


def changed(make, name, change):
    """What writes latents and then changes one of the arrays."""

    def damaged(folder):
        source = make(folder).source
        np.save(folder / name, change(np.load(folder / name)))
        return source

    return damaged


def with_text(make, name, change):
    """What writes latents and then changes one of the files."""

    def damaged(folder):
        source = make(folder).source
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return source

    return damaged


def arrays(**arrays):
    """What writes an NPZ file."""

    def write_npz(folder):
        folder.mkdir()
        np.savez(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return write_npz


def tensors(statistics=False, **changes):
    """What writes the layout of LightningDiT."""

    def write_tensors(folder):
        source = lightning_dit(folder).source
        path = folder / "latents_rank00_shard001.safetensors"
        safetensors.numpy.save_file(safetensors.numpy.load_file(path) | changes, path)
        if not statistics:
            (folder / "latents_stats.pt").unlink()
        return source

    return write_tensors


def of_eight_bits(folder):
    """Labels in floats of 8 bits, for which NumPy has no type."""
    path = tensors(labels=np.zeros(5, np.uint8))(folder) / "latents_rank00_shard001.safetensors"
    size, content = int.from_bytes(path.read_bytes()[:8], "little"), path.read_bytes()[8:]
    header = content[:size].replace(b'"U8"', b'"F8_E4M3"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[size:])
    return folder


def views_of_statistics(folder):
    """Statistics of a few bytes, which are views of any number of elements."""
    source = lightning_dit(folder).source
    view = tensor_pickle(shape=(2**26,), strides=(0,)).split(b"X\1\0\0\0a", 1)[1][:-2]
    content = b"\x80\x02}(X\4\0\0\0mean" + view + b"X\3\0\0\0std" + view + b"u."
    zipped(folder, content, **FOUR).rename(folder / "latents_stats.pt")
    return source


def compressed(folder):
    folder.mkdir()
    np.savez_compressed(folder / "a.npz", latents=draw()[0])
    return folder


class Calls:
    """An object whose pickle calls a function."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


FIRST = "00000/img-mean-std-00000000.npy"
HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr':'<f4','fortran_order':False,'shape':(8,99999999,9)}".ljust(118)
)


@pytest.mark.filterwarnings("ignore:.*does not flip")
@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (
            with_text(repa, "dataset.json", lambda b: b[:-30]),
            (),
            "dataset.json is not a file of lab",
        ),
        (with_text(repa, "dataset.json", lambda b: b.replace(b"00008", b"00009")), (), "lack 1 of"),
        (with_text(repa, "dataset.json", lambda b: b.replace(b"00000/", b"../")), (), "lack 5 of"),
        (changed(fast_dit, "imagenet256_labels/3.npy", lambda a: a / 2), (), "not one integer"),
        (changed(sd3, FIRST, lambda a: a), (), "does not say how its latents of 16 channels"),
        (changed(repa, FIRST, lambda a: a[:7]), (), "has 7 channels"),
        (
            changed(npy_side_by_side, "latents.npy", lambda a: a[0]),
            (),
            r"expected \(count, channels",
        ),
        (
            changed(npy_side_by_side, "labels.npy", lambda a: a[:8]),
            (),
            r"labels int64 \(8,\) for 9",
        ),
        (arrays(latents=np.zeros((2, 4, 4, 3))), (), r"channels last; store them first"),
        (
            arrays(latents=np.zeros((9, 4, 2, 2)), labels=np.int64(3)),
            (),
            r"labels int64 \(\) for 9",
        ),
        (tensors(labels=np.array(3)), (), r"labels int64 \(\) for 5 latents"),
        (of_eight_bits, (), "elements of type F8_E4M3 are not read .labels.: convert them"),
        (arrays(latents=np.array([Calls()])), (), "is not an array of numbers"),
        (arrays(mean=np.zeros((2, 4, 4, 4))), (), "has no array latents, nor mean and std"),
        (arrays(latents=np.full((9, 4, 2, 2), np.nan)), (), "4 of 9 latents cannot be used"),
        (arrays(latents=np.full((9, 4, 2, 2), 1e5)), (), "4 of 9 latents cannot be used"),
        (
            arrays(latents=np.zeros((9, 4, 2, 2))),
            ((1.0, 2.0),),
            "one number or 4; got 2",
        ),
        (
            arrays(latents=np.zeros((9, 4, 2, 2))),
            (None, 0.1),
            "shift_factor needs",
        ),
        (compressed, (), "save it by numpy.savez"),
        (tensors(), (), "or latents_stats.pt beside arrays"),
        (tensors(latents=np.zeros((5, 2, 4, 4), np.float32)), (), "latents_flip of shape"),
        (tensors(True, latents_flip=np.zeros((5, 4, 4, 6), np.int8)[:, :, :0]), (), "expected"),
        (with_text(lightning_dit, "latents_stats.pt", lambda b: b[:800]), (), "latents_stats.pt"),
        (views_of_statistics, (), "no tensors mean and std of at most 65,536 numbers"),
        (lambda folder: folder, (), "there is no folder or file"),
    ],
)
def test_each_damage_is_one_line(write, options, message, tmp_path):
    (tmp_path / "img-mean-std-00000000.npy").write_bytes(b"outside")
    with pytest.raises(odelt.InputError, match=message) as caught:
        import_latents(write(tmp_path / "source"), tmp_path / "out", config(), *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.filterwarnings("ignore:.*does not flip")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HUGE + bytes(100), "in 100 bytes"),
        (b"", "is not an array of numbers"),
        (np.zeros((8, 4, 5), np.float32), r"its shape is (8, 4, 5), that of others (8, 4, 6)"),
        (-np.ones((8, 4, 6), np.float32), "a negative standard deviation"),
        (np.full((8, 4, 6), np.inf, np.float16), "not finite"),
        (np.full((8, 4, 6), 1j), "its elements are complex128, not real numbers"),
    ],
)
def test_a_damaged_latent_among_others_is_skipped_and_listed(content, message, tmp_path):
    source = repa(tmp_path / "source").source
    damaged = source / FIRST.replace("0.npy", "3.npy")
    if isinstance(content, bytes):
        damaged.write_bytes(content)
    else:
        np.save(damaged, content)
    skipped, _ = import_latents(source, tmp_path / "out", config())
    (row,) = map(json.loads, skipped.read_text().splitlines())
    assert row["name"] == damaged.relative_to(source).as_posix()
    assert message in row["reason"]
    assert load_index(tmp_path / "out").skipped == 1
