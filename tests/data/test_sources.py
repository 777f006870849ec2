"""Every kind of data set behaves alike: shapes, ranges, classes and a held-out split."""

import dataclasses
import json
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.config import load_config, save_config
from odelt_eqx.data import (
    Adm,
    ArraySource,
    Digits,
    Folder,
    HeldOut,
    Idx,
    Loading,
    Npz,
    Shards,
    Tfds,
    Toy,
    load_into_memory,
    read,
    stream,
)
from odelt_eqx.data.source import DataSet
from odelt_eqx.images import height_width
from tests.conftest import TINY_RUN
from tests.data.makers import write_fashion, write_images, write_shards
from tests.data.test_tfds import write_tfds


def npz(folder):
    labels = np.arange(40, dtype=np.int64) % 4
    images = np.repeat(labels * 50, 75).reshape(40, 5, 5, 3).astype(np.uint8)
    np.savez(folder / "a.npz", images=images, labels=labels)
    return Npz(folder / "a.npz", held_out=HeldOut(0.3))


def adm(folder):
    labels = np.arange(20) % 3
    images = np.repeat(labels * 50, 48).reshape(20, 4, 4, 3).astype(np.uint8)
    np.savez(folder / "adm.npz", arr_0=images, arr_1=labels)
    return Adm(folder / "adm.npz", held_out=HeldOut(0.3))


def shards(folder):
    labels = np.arange(20) % 3
    images = np.repeat(labels * 50, 48).reshape(20, 4, 4, 3).astype(np.uint8)
    return Shards(write_shards(folder / "shards", "images", images, labels))


def folder_of_classes(folder):
    return Folder(write_images(folder / "images"), size=6, held_out=HeldOut(0.4))


MAKERS = {
    "digits": lambda _: Digits(),
    "idx": lambda folder: Idx(write_fashion(folder / "idx"), pad=2),
    "folder": folder_of_classes,
    "npz": npz,
    "adm": adm,
    "shards": shards,
    "tfds": lambda folder: Tfds(write_tfds(folder / "1.0.0"), size=6),
    "moons": lambda _: Toy("moons", count=200),
    "checkerboard": lambda _: Toy("checkerboard", count=200),
}
CLASSES = {
    **{"digits": 10, "idx": 10, "folder": 2, "npz": 4, "adm": 3, "shards": 3, "tfds": 2},
    **{"moons": 2, "checkerboard": 1},
}
POINTS = ("moons", "checkerboard")


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_is_read_alike(name, tmp_path):
    data = MAKERS[name](tmp_path)
    seen = {}
    for split in ("train", "held-out"):
        source = data.open(split)
        assert source.num_classes == len(source.class_names) == CLASSES[name]
        assert source.levels in ((None,) if name in POINTS else (17, 256))
        batch = next(stream(source, len(source), 0))
        assert batch["x"].shape == (len(source), *source.shape)
        assert batch["x"].dtype == np.float32
        assert np.abs(batch["x"]).max() <= (2.5 if name in POINTS else 1)
        assert batch["condition"].dtype == np.int32
        assert set(batch["condition"].tolist()) <= set(range(source.num_classes))
        assert source.describe()["examples"] == str(f"{len(source):,}")
        seen[split] = len(source)
    assert seen["train"] > seen["held-out"] > 0
    config = dataclasses.replace(TINY_RUN, data=data, loading=Loading(flip=True))
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_a_data_set_of_a_user_keeps_what_it_is_given():
    @dataclasses.dataclass(frozen=True)
    class Mine(DataSet):
        images: "an array"  # no type that can be looked up

        def _open(self, split):
            return ArraySource(self.images, np.zeros(len(self.images), np.int32))

    images = np.zeros((4, 8, 8, 1), np.float32)
    assert Mine(images).images is images
    assert Mine(images).open("train").shape == (8, 8, 1)


def test_the_hash_holds_out_its_share_and_items_stay_in_their_split():
    names = [f"n{i}/{i}.jpg" for i in range(4000)]
    rule = HeldOut(0.25)
    held = rule.select(names, "held-out")
    assert 0.22 < held.mean() < 0.28
    assert (rule.select(names, "train") == ~held).all()
    more = [*names[::-1], "another.jpg"]
    assert rule.select(more, "held-out")[:4000].tolist() == held[::-1].tolist()
    assert (HeldOut(0.25, seed=1).select(names, "held-out") != held).any()
    with pytest.raises(odelt.InputError, match=r"share must lie in \[0, 1\); got 1.0"):
        HeldOut(1.0)


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_files_are_read_padded_and_named(tmp_path, suffix):
    folder = write_fashion(tmp_path, train=20, held_out=10, suffix=suffix)
    source = Idx(folder, pad=2, class_names=tuple("abcdefghij")).open("train")
    assert (len(source), source.shape) == (20, (32, 32, 1))
    image = source[13]["x"][..., 0]
    assert source[13]["condition"] == 3
    assert (image[:2] == -1).all()
    assert image[2 + 6, 2 + 4] == np.float32(145) / np.float32(127.5) - 1
    assert source.class_names[3] == "d"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "has no file train-labels-idx"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is not a whole IDX file of bytes"),
        (lambda p: p.write_bytes(b""), "is not a whole IDX file of bytes"),
        (lambda p: p.write_bytes(b"\0\0\x08\1" + struct.pack(">I", 2) + b"ab"), "labels of shape"),
    ],
)
def test_damaged_idx_files_are_refused_in_one_line(tmp_path, damage, message):
    folder = write_fashion(tmp_path, train=20, held_out=10, suffix="")
    damage(folder / "train-labels-idx1-ubyte")
    with pytest.raises(odelt.InputError, match=message) as error:
        Idx(folder).open("train")
    assert "\n" not in str(error.value)


def test_folders_that_are_called_like_idx_files_are_passed_over(tmp_path):
    """Kaggle's MNIST has one beside each file."""
    write_fashion(tmp_path, suffix="")
    for path in sorted(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
        path.mkdir()
    assert len(Idx(tmp_path).open("held-out")) == 32
    with pytest.raises(odelt.InputError, match="pad must not be negative; got -1"):
        Idx(tmp_path, pad=-1)


def test_a_truncated_gzip_file_is_refused_in_one_line(tmp_path):
    folder = write_fashion(tmp_path)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(odelt.InputError, match="cannot be read"):
        Idx(folder).open("train")


def test_images_in_a_folder_are_cropped_to_the_central_square(tmp_path):
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:8, 0] = 255
    (tmp_path / "red").mkdir()
    Image.fromarray(image).save(tmp_path / "red" / "a.png")
    (tmp_path / "red" / ".hidden.png").write_bytes(b"")
    (tmp_path / "red" / "notes.txt").write_text("not a image")
    source = Folder(tmp_path, size=8, held_out=HeldOut(0.0)).open("train")
    assert (len(source), source.class_names) == (1, ("all",))
    image = source[0]["x"]
    assert (image[:, :4, 0] == 1).all()
    assert (image[:, 4:, 0] == -1).all()


@pytest.mark.parametrize(
    ("sizes", "mode", "shape"),
    [
        ([(28, 28)], "L", (28, 28, 1)),
        ([(12, 8)], "RGB", (8, 12, 3)),
        ([(64, 48)], "P", (48, 64, 3)),
        ([(50, 37)], "RGB", (40, 48, 3)),  # no patch divides both
        ([(640, 480)], "RGBA", (48, 64, 3)),
        ([(480, 640), (512, 512), (300, 200)], "RGB", (64, 64, 3)),
        ([(5000, 10)], "LA", (8, 64, 1)),
    ],
)
def test_a_folder_chooses_a_shape_that_suits_its_images(tmp_path, sizes, mode, shape):
    for number, size in enumerate(sizes):
        Image.new(mode, size).save(tmp_path / f"{number}.png")
    data = Folder(tmp_path, held_out=HeldOut(0.0))
    source = data.open("train")
    assert source.shape == source[0]["x"].shape == shape
    chosen = data.with_shape()
    assert (*height_width(chosen.size), chosen.channels) == shape
    assert chosen.open("train").shape == shape
    assert dataclasses.replace(data, size=16).open("train").shape == (16, 16, shape[2])


def test_a_photo_that_is_turned_has_the_shape_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    assert Folder(tmp_path, held_out=HeldOut(0.0)).open("train").shape == (64, 48, 3)


def test_a_held_out_folder_has_the_labels_of_the_training_folder(tmp_path):
    write_images(tmp_path / "train", classes=("ants", "cats", "dogs"))
    write_images(tmp_path / "test", classes=("cats", "dogs"), count=2)
    data = Folder(tmp_path / "train", size=4, held_out_folder=tmp_path / "test")
    assert len(data.open("train")) == 18
    held_out = data.open("held-out")
    assert [held_out[i]["condition"].item() for i in range(4)] == [1, 1, 2, 2]
    write_images(tmp_path / "test", classes=("emus",))
    with pytest.raises(odelt.InputError, match=r"has a class that the training data lack: emus"):
        data.open("held-out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no folder"),
        ("empty", r"holds no images \(.*\)$"),
        ("packed", r"holds no images \(.*\), but photos/cats\.ZIP: unpack it"),
        ("mixed", "beside folders"),
    ],
)
def test_folders_without_images_or_of_two_kinds_are_refused_in_one_line(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed" / "photos").mkdir(parents=True)
    (tmp_path / "packed" / "photos" / "cats.ZIP").touch()
    write_images(tmp_path / "mixed")
    Image.new("L", (2, 2)).save(tmp_path / "mixed" / "0.png")
    with pytest.raises(odelt.InputError, match=message):
        Folder(tmp_path / name, size=4).open("train")


IMAGES = {"images": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros(2, int)}


@pytest.mark.parametrize("names", [["café", "b"], [b"caf\xc3\xa9", b"b"]])
def test_class_names_of_arrays_are_text(tmp_path, names):
    np.savez(tmp_path / "a.npz", **IMAGES, class_names=np.array(names))
    source = Npz(tmp_path / "a.npz", held_out=HeldOut(0.0)).open("train")
    assert source.class_names == ("café", "b")


@pytest.mark.parametrize("values", [None, (0.0, 1.0)])
def test_truth_values_are_black_and_white(tmp_path, values):
    images = np.array([[[True, False], [False, False]]])
    np.savez(tmp_path / "a.npz", images=images)
    source = Npz(tmp_path / "a.npz", held_out=HeldOut(0.0), range=values).open("train")
    assert source[0]["x"].tolist() == [[[1], [-1]], [[-1], [-1]]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(2, int)}, "it has no array 'images'"),
        ({"images": np.zeros((2, 3, 3)), "labels": np.zeros(3, int)}, "labels of shape"),
        ({"images": np.zeros((2, 3, 3)), "labels": np.zeros(2)}, "expected .* and integers"),
        ({"images": np.full((2, 3, 3), 1.5)}, "float64 from 0 to 1.5, outside -1 to 1; say"),
        ({"images": np.full((2, 3, 3), np.nan)}, "have values that are not finite"),
        ({"images": np.eye(3, dtype=np.uint8)[None]}, "bytes of 0 and 1: give --data.range 0 1 if"),
        ({"images": np.array([{}, {}])}, "Object arrays cannot be loaded"),
        ({**IMAGES, "class_names": np.array("cat")}, r"class_names of shape \(\), <U3; expected"),
        ({**IMAGES, "class_names": np.array([["a", "b"]])}, r"class_names of shape \(1, 2\)"),
        ({**IMAGES, "class_names": np.array([0.5])}, r"shape \(1,\), float64; expected strings"),
    ],
)
def test_other_arrays_are_refused_in_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(odelt.InputError, match=message):
        Npz(tmp_path / "a.npz").open("train")


def test_images_of_adm_are_read_from_the_disk_as_they_are_used(tmp_path):
    """Memory holds a few of 48 MB; a compressed file holds the same ones."""
    images = np.zeros((1000, 128, 128, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(1000) % 256
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / f"{save.__name__}.npz", images=images[:3], arr_0=images)
    del images
    tracemalloc.start()
    source = Adm(tmp_path / "savez.npz").open("train")
    found, labels = read(source, range(997, 1000))
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert (len(source), source.shape, source.class_names) == (1000, (128, 128, 3), ("0",))
    np.testing.assert_allclose(127.5 * (found[:, 0, 0, 0] + 1), np.arange(997, 1000) % 256)
    assert labels.tolist() == [0, 0, 0]
    compressed = Adm(tmp_path / "savez_compressed.npz").open("train")
    np.testing.assert_array_equal(read(compressed, range(997, 1000))[0], found)
    assert compressed.contents == source.contents
    again = pickle.loads(pickle.dumps(source))  # as workers get it
    np.testing.assert_array_equal(again[999]["x"], found[2])
    with pytest.raises(odelt.InputError, match=r"image 1 of .* has colours; grey images were"):
        Adm(tmp_path / "savez.npz", grey=True).open("train")[1]


def test_files_that_are_not_of_adm_are_refused_in_one_line(tmp_path):
    path, images = tmp_path / "a.npz", np.zeros((3, 4, 4, 3), np.uint8)
    refused = {
        "arr_0 is float32": {"arr_0": np.float32(images)},
        "labels of shape": {"arr_0": images, "arr_1": np.zeros(2, int)},
        "not a file of images as ADM writes them": {"images": images},
        "it claims": {"arr_0": np.array([{}])},
        r"images of shape \(\)": {"arr_0": np.array(0, np.uint8)},
        "labels go from 0 to 2147483647": {"arr_0": images, "arr_1": np.array([0, 1, 2**31 - 1])},
        "labels go from -1 to 2": {"arr_0": images, "arr_1": np.array([0, -1, 2])},
    }
    for message, arrays in refused.items():
        np.savez(path, **arrays)
        with pytest.raises(odelt.InputError, match=message):
            Adm(path).open("train")
    np.savez(path, arr_0=images)
    path.write_bytes(path.read_bytes().replace(b"(3, 4, 4, 3)", b"(9, 9, 9, 3)"))
    with pytest.raises(odelt.InputError, match="is not a file of images as ADM"):
        Adm(path).open("train")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(odelt.InputError, match="is not a file of images as ADM"):
        Adm(path).open("train")


def test_a_split_without_examples_is_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", images=-np.ones((3, 2, 2)))
    with pytest.raises(odelt.InputError, match=r"held-out split; raise --data\.held-out\.share"):
        Npz(tmp_path / "a.npz", held_out=HeldOut(0.0)).open("held-out")
    np.savez(tmp_path / "b.npz", images=-np.ones((1, 2, 2)))
    both = Npz(tmp_path / "a.npz", held_out_path=tmp_path / "b.npz")
    assert (len(both.open("train")), len(both.open("held-out"))) == (3, 1)


def test_a_fixed_random_choice_is_loaded_into_memory():
    images = np.arange(300, dtype=np.uint8)[:, None, None, None].repeat(2, 1)
    source = ArraySource(images, np.repeat(np.arange(3, dtype=np.int32), 100))
    some = load_into_memory(source, 60)
    assert (len(some), some.x.dtype, some.levels) == (60, np.float32, 256)
    assert min(np.bincount(some.condition)) > 8
    np.testing.assert_array_equal(some.x, load_into_memory(source, 60).x)
    assert len(load_into_memory(source, 1000)) == 300
    digits = Digits().open("train")
    assert load_into_memory(digits, 5000) is digits


def test_shards_of_another_version_or_with_missing_files_are_refused_in_one_line(tmp_path):
    data = shards(tmp_path)
    (data.folder / "train-00001.array_record").unlink()
    with pytest.raises(odelt.InputError, match=r"train-00001\.array_record is missing"):
        data.open("train")
    cut = data.folder / "held-out-00000.array_record"
    cut.write_bytes(cut.read_bytes()[:-60_000])
    with pytest.raises(odelt.InputError, match=r"record 1 in .* cannot be read"):
        data.open("held-out")[1]
    path = data.folder / "index.json"
    document = json.loads(path.read_text())
    for changes, message in (
        ({"version": 1}, "has version 1 of the format, not 2; prepare the shards again"),
        ({"skipped": "x"}, "does not fit this version: expected a whole number"),
        (
            {"layout": {**document["layout"], "dtype": "float16"}},
            r"does not fit this version: .*layout",
        ),
    ):
        path.write_text(json.dumps({**document, **changes}))
        with pytest.raises(odelt.InputError, match=message):
            data.open("train")
    path.unlink()
    with pytest.raises(odelt.InputError, match="is not a folder of shards"):
        data.open("train")


def latents(folder, count=8):
    """Means equal to the index, negated in the mirror image; standard deviation 0 and 1/2."""
    values = np.zeros((count, 2, 4, 4, 4), np.float16)
    values[:, 0, ..., :2] = np.arange(count)[:, None, None, None]
    values[:, 1, ..., :2] = -np.arange(count)[:, None, None, None]
    values[..., 2] = -30
    values[..., 3] = 2 * np.log(0.5)
    return Shards(write_shards(folder / "latents", "latents", values, np.arange(count) % 2))


def test_latents_are_sampled_anew_each_time(tmp_path):
    source = latents(tmp_path).open("train")
    assert (source.shape, source.levels, source.random) == ((4, 4, 2), None, True)
    assert (source[5]["x"] == 5).all()
    loading = Loading(flip=True)
    batches = stream(source, 6, 0, loading=loading)
    drawn = [next(batches) for _ in range(50)]
    indices = np.concatenate([b["index"] for b in drawn])
    images = np.concatenate([b["x"] for b in drawn])
    sign = np.sign(images[..., 0].mean((1, 2)))
    expected = (sign * indices)[:, None, None]
    np.testing.assert_allclose(images[..., 0] - expected, 0, atol=1e-5)
    assert 0.4 < (sign[indices > 0] > 0).mean() < 0.6
    noise = images[..., 1] - expected
    assert abs(noise[indices > 0].std() - 0.5) < 0.02
    assert len(np.unique(noise)) > 0.99 * noise.size
    again = next(stream(source, 6, 0, start=30, loading=loading))
    np.testing.assert_array_equal(again["x"], drawn[30]["x"])
    unflipped = next(stream(source, 6, 0))
    assert (unflipped["x"][..., 0].round() == unflipped["index"][:, None, None]).all()
