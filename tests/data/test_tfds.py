"""Data sets of TensorFlow Datasets, read without TensorFlow."""

import json
from io import BytesIO

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.data import HeldOut, Tfds, tfds
from odelt_eqx.data.tfds import parse_example


def delimited(number, value):
    """A protocol buffer's field of bytes."""
    length, size = bytearray(), len(value)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + value


def example(**features):
    """A `tf.train.Example`, byte by byte."""
    entries = b""
    for name, value in features.items():
        kind = 1 if isinstance(value, bytes) else 3
        packed = delimited(1, value if kind == 1 else bytes([value]))
        entry = delimited(1, name.encode()) + delimited(2, delimited(kind, packed))
        entries += delimited(1, entry)
    return delimited(1, entries)


def write_tfds(folder, splits=(("train", (5, 4)), ("test", (3,)))):
    """Write grey images as `tfds build --file_format=array_record` does."""
    folder.mkdir(parents=True)
    for split, counts in splits:
        for number, count in enumerate(counts):
            path = folder / f"x-{split}.array_record-{number:05d}-of-{len(counts):05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for i in range(count):
                file = BytesIO()
                Image.new("RGB", (9, 7), (40 * number + i,) * 3).save(file, "PNG")
                writer.write(example(image=file.getvalue(), label=i % 2, id=7))
            writer.close()
    info = {"splits": [{"name": s, "shardLengths": [str(n) for n in c]} for s, c in splits]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("cat\ndog\n")
    return folder


def test_features_are_read_by_name():
    assert parse_example(example(a=b"x" * 300, b=5)) == {"a": [b"x" * 300], "b": [5]}
    assert parse_example(bytes.fromhex("0a0f0a0d0a0166120812060a040000c03f")) == {"f": [1.5]}


def test_images_classes_and_splits_are_those_of_the_data(tmp_path):
    data = Tfds(write_tfds(tmp_path / "1.0.0"), size=4)
    train, held_out = data.open("train"), data.open("held-out")
    assert (len(train), len(held_out), train.class_names) == (9, 3, ("cat", "dog"))
    greys = [round(float(127.5 * (train[i]["x"].mean() + 1))) for i in range(9)]
    assert greys == [0, 1, 2, 3, 4, 40, 41, 42, 43]
    assert [train[i]["condition"].item() for i in range(9)] == [0, 1, 0, 1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(("options", "expected"), [({}, 16), ({"white": 4095}, 255)])
def test_images_of_twelve_bits_have_their_own_white(tmp_path, options, expected):
    folder, file = write_tfds(tmp_path / "1.0.0", (("train", (1,)),)), BytesIO()
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(file, "PNG")
    (path,) = folder.glob("*array_record*")
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(example(image=file.getvalue(), label=1))
    writer.close()
    source = Tfds(folder, size=4, channels=1, held_out=HeldOut(0.0), **options).open("train")
    assert set(source[0]["x"].ravel()) == {np.float32(expected / 127.5 - 1)}


def test_examples_are_held_out_if_the_data_have_one_split(tmp_path):
    data = Tfds(write_tfds(tmp_path / "1", splits=(("train", (9,)),)), 4, held_out=HeldOut(0.4))
    assert len(data.open("train")) + len(data.open("held-out")) == 9


def test_other_folders_and_features_are_refused_in_one_line(tmp_path):
    folder = write_tfds(tmp_path / "1")
    with pytest.raises(odelt.InputError, match="has no feature 'photo' that is an image"):
        Tfds(folder, 4, image="photo").open("train")[0]
    with pytest.raises(odelt.InputError, match="has no feature 'label' that is an image"):
        Tfds(folder, 4, image="label").open("train")[0]
    assert Tfds(folder, 4, label="nothing").open("train").class_names == ("all",)
    next(folder.glob("*train*00001-of*")).rename(folder / "lost")
    with pytest.raises(odelt.InputError, match="--file_format=array_record"):
        Tfds(folder, 4).open("train")
    with pytest.raises(odelt.InputError, match="is not from a version of a data set of TensorFlow"):
        Tfds(tmp_path, 4).open("train")
    assert np.isfinite(Tfds(folder, 4).open("held-out")[0]["x"]).all()


def test_a_label_of_no_class_is_refused(tmp_path):
    folder = write_tfds(tmp_path / "1")
    (folder / "label.labels.txt").write_text("cat\n")
    with pytest.raises(odelt.InputError, match=r"example 1 .* label 1, which is none of its 1 cl"):
        Tfds(folder, 4).open("train")[1]
    (folder / "label.labels.txt").unlink()
    with pytest.raises(odelt.InputError, match=r"label 1, which is none of its 1 .*labels\.txt"):
        Tfds(folder, 4).open("train")[1]


@pytest.mark.parametrize("labels", [[b"cat"], [0.5], [], [0, 1]])
def test_a_label_is_one_integer(tmp_path, monkeypatch, labels):
    parse = lambda record: parse_example(record) | {"label": labels}
    monkeypatch.setattr(tfds, "parse_example", parse)
    with pytest.raises(odelt.InputError, match=r"has the label .*, which is none of its 2 classes"):
        Tfds(write_tfds(tmp_path / "1"), 4).open("train")[0]


@pytest.mark.parametrize("classes", ["3", 3])
def test_classes_without_names_are_counted_in_the_description(tmp_path, classes):
    folder = write_tfds(tmp_path / "1")
    (folder / "label.labels.txt").unlink()
    feature = {"classLabel": {"numClasses": classes}}
    content = {"featuresDict": {"features": {"label": feature}}}
    (folder / "features.json").write_text(json.dumps(content))
    source = Tfds(folder, 4).open("train")
    assert source.class_names == ("0", "1", "2")
    assert source[1]["condition"] == 1
    for text in ('{"featuresDict": []}', "[]", json.dumps(content).replace("3", "99999999999")):
        (folder / "features.json").write_text(text)
        with pytest.raises(odelt.InputError, match=r"features\.json"):
            Tfds(folder, 4).open("train")
