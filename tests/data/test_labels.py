"""Classes and splits are what people wrote down, in every kind of source."""

import io
import json
import os
import tarfile
import unicodedata
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.data import Folder, HeldOut, Idx, Npz
from odelt_eqx.data.labels import number_ids, number_names, split_names
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.data.records import load_index
from tests.data.makers import write_fashion, write_idx, write_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(grey):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (grey,) * 3).save(out, "PNG")
    return out.getvalue()


def read_all(path, split="train", **options):
    """Return the class name of each image, by its grey level."""
    source = Folder(path, size=4, **options).open(split)
    greys = [round(float(source[i]["x"][0, 0, 0] + 1) * 127.5) for i in range(len(source))]
    labels = [source.class_names[int(source[i]["condition"])] for i in range(len(source))]
    return dict(zip(greys, labels, strict=True))


HELD_OUT = HeldOut(0.0)


# Numbers.


def test_a_label_of_no_class_is_refused_with_its_place(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(64) % 26 + 1)
    names = tuple("abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(
        odelt.InputError, match=r"the label 26 \(item 25\).*its 26 classes, 0 to 25"
    ):
        Idx(tmp_path, class_names=names).open("train")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(32) % 5 + 1)
    source = Idx(tmp_path, class_names=names, renumber=True)
    assert source.open("train").condition[:3].tolist() == [0, 1, 2]
    assert source.open("held-out").condition[:6].tolist() == [0, 1, 2, 3, 4, 0]


def test_a_held_out_label_that_training_lacks_is_refused(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(32, 11))
    with pytest.raises(odelt.InputError, match=r"held-out labels.* has the label 11 \(item 0\)"):
        Idx(tmp_path).open("held-out")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.arange(8) % 4 - 1, (), r"the label -1 \(item 0\)"),
        (np.arange(8) % 5, ("a", "b"), r"the label 2 \(item 2\), .*2 classes, 0 to 1"),
        (np.array([0, 1, 2**40, 1, 0, 0, 0, 0]), (), r"the label 1099511627776, but only 3"),
        (np.array([0, 2**64 - 1, 0, 0, 0, 0, 0, 0], np.uint64), (), r"the label -1 \(item 1\)"),
    ],
)
def test_labels_of_arrays_are_those_of_classes(tmp_path, labels, names, message):
    arrays = {"images": np.zeros((8, 2, 2, 1), np.uint8), "labels": labels}
    np.savez(tmp_path / "a.npz", **arrays, **({"class_names": np.array(names)} if names else {}))
    with pytest.raises(odelt.InputError, match=message):
        Npz(tmp_path / "a.npz").open("train")


def test_sparse_numbers_may_be_renumbered():
    ids = np.array([7, 5_000_000, 7, -3])
    names, labels = number_ids(ids, "a file", renumber=True)
    assert (names, labels.tolist()) == (("-3", "7", "5000000"), [1, 2, 1, 0])
    _, other = number_ids(np.array([5_000_000]), "a file", renumber=True, known=ids)
    assert other.tolist() == [2]
    with pytest.raises(odelt.InputError, match=r"the label 8 \(item 0\)"):
        number_ids(np.array([8]), "a file", renumber=True, known=ids)
    with pytest.raises(odelt.InputError, match="3 classes and 2 class names"):
        number_ids(ids, "a file", ("a", "b"), renumber=True)


def test_names_that_are_numbers_are_in_their_order():
    assert number_names(["10", "2", "1", "2"])[0] == ("1", "2", "10")
    assert number_names(["10", "2", "b"])[0] == ("10", "2", "b")


def test_sparse_labels_of_parquet_are_refused_and_renumbered(tmp_path):
    columns = {"image": [png(9 * i) for i in range(8)], "label": [0, 1, 2, 5_000_000] * 2}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(odelt.InputError, match=r"5000000, but only 4 different ones; renumber"):
        prepare(tmp_path / "a.parquet", tmp_path / "out", PrepareConfig(size=4, workers=1))
    config = PrepareConfig(size=4, workers=1, renumber=True)
    prepare(tmp_path / "a.parquet", tmp_path / "out", config)
    assert load_index(tmp_path / "out").class_names == ("0", "1", "2", "5000000")


# Splits.


@pytest.mark.parametrize(
    ("parts", "splits"),
    [
        (["train", "val", "test"], ["train", "val", "test"]),
        (["training", "validation"], ["train", "val"]),
        (["train-00000-of-2.parquet", "test-0.parquet"], ["train", "test"]),
        (["train", "dev"], ["train", "val"]),
        (["Train-1", "Eval-1"], ["train", "test"]),
        (["train", "device"], None),
        (["train", "plane"], None),
        (["trains", "tests"], None),
        (["val", "test"], None),
        (["train", "train"], None),
        ([""], None),
    ],
)
def test_names_say_what_a_split_is(parts, splits):
    assert split_names(parts) == splits


@pytest.mark.parametrize(
    "parts",
    [
        ["airplane", "train", "truck"],
        ["cat", "test_tube", "train_station"],
        ["docs", "test", "val"],
        ["train", "trains", "train_2", "x"],
    ],
)
def test_classes_may_be_called_like_splits(parts):
    assert split_names(parts) is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["train", "val", "docs"], "train and val are splits, unlike docs beside them: move"),
        (["Training", "validation", "a", "b", "c", "d", "e"], "unlike a, b, c and 2 more beside"),
        (["train", "test", ""], "unlike files in no folder beside them"),
        (["train_images", "test_images", "extra"], "train_images are splits, unlike extra"),
        (["train2017", "val2017", "art"], "train2017 and val2017 are splits"),
        (["train-0-of-2.parquet", "test-0-of-1.parquet", "x.parquet"], "unlike x.parquet"),
    ],
)
def test_what_lies_beside_splits_is_named(parts, message):
    with pytest.raises(odelt.InputError, match=message):
        split_names(parts)


def test_a_split_is_not_trained_on_for_what_lies_beside_it(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, ("cat", "dog"), 3)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "logo.png").write_bytes(png(1))
    with pytest.raises(odelt.InputError, match="train and val are splits, unlike docs"):
        Folder(tmp_path, size=4).open("train")


@pytest.mark.filterwarnings("ignore:.*for testing is not used")
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folders_called_train_and_val_are_splits(tmp_path, kind):
    for split, count in (("train", 8), ("val", 3), ("test", 4)):
        write_images(tmp_path / "data" / split, ("cat", "dog"), count)
    path = tmp_path / "data"
    if kind == "zip":
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "data").rglob("*.png")):
                archive.write(file, file.relative_to(tmp_path / "data"))
    source = Folder(path, size=4)
    assert source.open("train").class_names == ("cat", "dog")
    assert [len(source.open(split)) for split in ("train", "held-out")] == [16, 6]
    prepare(path, tmp_path / "out", PrepareConfig(size=4, workers=1))
    index = load_index(tmp_path / "out")
    assert index.classes == {"train": (8, 8), "held-out": (3, 3)}
    assert index.held_out is None
    # Another source takes the place of `val`, which is not trained on all the same.
    other = write_images(tmp_path / "other", ("cat", "dog"), 2)
    source = Folder(path, size=4, held_out_folder=other)
    assert [len(source.open(split)) for split in ("train", "held-out")] == [16, 4]
    config = PrepareConfig(size=4, workers=1, held_out_source=other)
    prepare(path, tmp_path / "again", config)
    assert load_index(tmp_path / "again").classes == {"train": (8, 8), "held-out": (2, 2)}


def test_parquet_files_called_train_and_test_are_splits(tmp_path):
    (tmp_path / "data").mkdir()
    for split, count in (("train", 10), ("test", 6)):
        rows = [{"bytes": png(9 * i), "path": None} for i in range(count)]
        table = pa.table({"image": rows, "label": [i % 3 for i in range(count)]})
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    source = Folder(tmp_path, size=4)
    assert [len(source.open(split)) for split in ("train", "held-out")] == [10, 6]
    assert source.open("train").num_classes == 3


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_of_splits_is_noted(tmp_path, kind):
    rows = [{"file_name": f"{i}.png", "label": i % 2, "split": "dev"} for i in range(8)]
    for part in ("dev", "train"):
        rows[0]["split"] = part
        if kind == "parquet":
            images = [png(9 * i) for i in range(8)]
            table = pa.Table.from_pylist(rows).append_column("image", [images])
            pq.write_table(table, tmp_path / "a.parquet")
        else:
            for row in rows:
                (tmp_path / str(row["file_name"])).write_bytes(png(8))
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            lines = lines if kind == "csv" else map(json.dumps, rows)
            (tmp_path / f"metadata.{kind}").write_text("\n".join(lines))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert len(Folder(tmp_path, size=4).find()) == 8
        said = [each for each in found if "'split', which is not read" in str(each.message)]
        assert len(said) == (part == "train")


def test_other_columns_of_classes_are_named_and_chosen(tmp_path):
    columns = {"img": [png(9 * i) for i in range(10)]}
    columns |= {
        "fine_label": [i % 5 for i in range(10)],
        "coarse_label": [i % 2 for i in range(10)],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="it has fine_label, coarse_label: choose one by"):
        assert set(read_all(tmp_path / "a.parquet").values()) == {"all"}
    found = read_all(tmp_path / "a.parquet", label="fine_label")
    assert {int(label) for label in found.values()} == set(range(5))


# Files of labels.


def labelled(tmp_path, files):
    """Write images of grey levels 0, 10, 20, ... and other files; return a folder, zip and tar."""
    contents = {f"x/{i}.png": png(10 * i) for i in range(6)} | files
    for name, content in contents.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return [tmp_path / "folder", tmp_path / "a.zip", tmp_path / "a.tar"]


ROWS = [(f"{i}.png", "ab"[i % 2]) for i in range(6)]
LABEL_FILES = [
    {"dataset.json": json.dumps({"labels": [[f"x/{n}", "ab".index(c)] for n, c in ROWS]})},
    {"x/metadata.csv": "file_name,label\n" + "".join(f"{n},{c}\n" for n, c in ROWS)},
    {
        "metadata.jsonl": "".join(
            json.dumps({"file_name": f"x/{n}", "label": c}) + "\n" for n, c in ROWS
        )
    },
    {f"x/{n[:-4]}.cls": c for n, c in ROWS},
    {f"x/{n[:-4]}.cls": str("ab".index(c)) for n, c in ROWS} | {"x/0.json": "{}"},
    {f"x/{n[:-4]}.json": json.dumps({"label": "ab".index(c)}) for n, c in ROWS},
    {"x/metadata.csv": " file_name;label \n" + "".join(f"{n} ; {c} \n" for n, c in 2 * ROWS)},
    {
        "dataset.json": json.dumps({"labels": [[f"x/{n}", "ab".index(c)] for n, c in ROWS]}),
        "x/metadata.csv": "file_name,label\n" + "".join(f"{n},{'ab'.index(c)}\n" for n, c in ROWS),
    },
]


@pytest.mark.parametrize("files", LABEL_FILES, ids=lambda files: next(iter(files)))
def test_files_of_labels_are_read_in_folders_and_archives(tmp_path, files):
    encoded = {name: text.encode() for name, text in files.items()}
    for path in labelled(tmp_path, encoded):
        found = read_all(path, held_out=HELD_OUT)
        assert [found[10 * i] in "a0" for i in range(6)] == [True, False] * 3
        assert len(set(found.values())) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", b"[]", r'not a file of labels: expected {"labels": \[\[name, class'),
        ("dataset.json", b'{"images": []}', r'expected {"labels": \[\[name, class'),
        ("dataset.json", b"[" * 200_000, "is not a file of labels"),
        ("dataset.json", b'{"labels": [["x/0.png", 0]]}', "lack 5 of its images: x/1.png"),
        ("dataset.json", b'{"labels": [["x/0.png", [1]]]}', "lack 5"),
        ("metadata.csv", b"file_name,label\n\xff\xfe,1\n", "is not a file of labels"),
        ("metadata.jsonl", b"null\n", "is not a file of labels"),
        ("metadata.jsonl", b'{"file_name": 3, "label": 1}', "row 1 has no file_name"),
        ("metadata.jsonl", b'{"file_name": "x", "label": 1}\n{"label": 1}', "row 2 has no file_n"),
        ("metadata.jsonl", b"[1]\n", "expected an object on each line, with the key file_name"),
        ("metadata.csv", b"file_name,label\n,1\n", "row 1 has no file_name"),
        ("metadata.csv", b"file_name,x\n0.png,a,b\n", "row 1 is longer than the header; quote"),
        ("metadata.csv", b"filename,label\nx/0.png,a\n", "no column file_name; .*filename, label$"),
        ("metadata.jsonl", b'{"name": "x/0.png", "label": 1}\n', "no column file_name; .*name, la"),
        ("metadata.csv", b"file_name,label\nx/0.png,a\nx/0.png,b\n", "x/0.png is .* 'b', .* 'a'"),
        ("metadata.jsonl", 2 * b'{"file_name": "a", "label": 1}\n' + b'{"file_name": "a"}', "None"),
        (
            "dataset.json",
            b'{"labels": [["x/0.png", 0], ["x/0.png", 1]]}',
            "class 1, .* of 0: leave",
        ),
        ("metadata.csv", b"file_name,label,label\nx/0.png,a,b\n", "it has 2 columns 'label'"),
        ("x/0.json", b"{", "0.json is not JSON"),
        ("x/0.cls", b"1", "lack 5 of its images"),
    ],
)
def test_a_damaged_file_of_labels_is_one_line(tmp_path, name, content, message):
    for path in labelled(tmp_path, {name: content}):
        with pytest.raises(odelt.InputError, match=message) as error:
            read_all(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("table", [b"camera,place\nx,y\n", b"filename;class\nx/0.png;a\n"])
def test_a_table_of_something_else_is_left_out_with_a_note(tmp_path, table):
    path = labelled(tmp_path, {"metadata.csv": table})[0]
    with pytest.warns(UserWarning, match="is not read for classes: it has no column file_name"):
        assert set(read_all(path, held_out=HELD_OUT).values()) == {"all"}


@pytest.mark.parametrize("values", [[0, "a", 1, 2, 3, 4], [[1]] * 6, [0.5] * 6, [True] * 6])
def test_a_class_is_a_number_or_a_name(tmp_path, values):
    content = json.dumps({"labels": [[f"x/{i}.png", v] for i, v in enumerate(values)]}).encode()
    with pytest.raises(odelt.InputError, match="class is neither a number nor a name"):
        read_all(labelled(tmp_path, {"dataset.json": content})[1])


def test_a_table_without_the_column_of_classes_names_the_others(tmp_path):
    table = "file_name,colour,kind\n" + "".join(f"x/{i}.png,red,{i % 3}\n" for i in range(6))
    path = labelled(tmp_path, {"metadata.csv": table.encode()})[0]
    with pytest.warns(
        UserWarning, match="no column 'label' of classes; it has colour, kind: choose"
    ):
        assert set(read_all(path, held_out=HELD_OUT).values()) == {"all"}
    assert sorted(set(read_all(path, label="kind", held_out=HELD_OUT).values())) == ["0", "1", "2"]


@pytest.mark.parametrize("files", LABEL_FILES, ids=lambda files: next(iter(files)))
def test_files_of_labels_may_begin_with_a_byte_order_mark(tmp_path, files):
    encoded = {name: text.encode("utf-8-sig") for name, text in files.items()}
    found = read_all(labelled(tmp_path, encoded)[1], held_out=HELD_OUT)
    assert [found[10 * i] in "a0" for i in range(6)] == [True, False] * 3
    assert len(set(found.values())) == 2


@pytest.mark.parametrize(
    ("delimiter", "end"),
    [(",", "\r\n"), (";", "\r\n"), ("\t", "\n"), (", ", "\n"), (";", "\n;;\n")],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, delimiter, end):
    rows = [("file_name", "label", "note"), *((f"x/{n}", c, "1,5") for n, c in ROWS)]
    table = end.join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    found = read_all(labelled(tmp_path, {"metadata.csv": table.encode()})[1], held_out=HELD_OUT)
    assert found == {10 * i: "ab"[i % 2] for i in range(6)}


@pytest.mark.parametrize("name", ["dataset.json", "metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("empty", ["", None])
def test_an_image_without_a_class_is_refused_by_name(tmp_path, name, empty):
    rows = [(n, c if n != "0.png" else empty) for n, c in ROWS]
    table = {
        "dataset.json": json.dumps({"labels": [[f"x/{n}", c] for n, c in rows]}),
        "metadata.csv": "label,file_name\n" + "".join(f"{c or ''},x/{n}\n" for n, c in rows),
        "metadata.jsonl": "".join(
            json.dumps({"file_name": f"x/{n}", "label": c}) + "\n" for n, c in rows
        ),
    }[name]
    path = labelled(tmp_path, {name: table.encode()})[0]
    with pytest.raises(odelt.InputError, match=r"without a class for 1 of its images: x/0\.png"):
        read_all(path)


def test_an_empty_class_of_parquet_is_refused(tmp_path):
    columns = {"image": [png(9 * i) for i in range(4)], "label": ["a", "", "b", "a"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(odelt.InputError, match=r"an empty name of a class \(item 1\)"):
        read_all(tmp_path / "a.parquet")


# Names of files.


@pytest.mark.parametrize("start", ["./x/", "x\\", ".\\x\\", "x//"])
def test_a_path_may_be_written_in_several_ways(tmp_path, start):
    content = {"metadata.csv": "file_name,label\n" + "".join(f"{start}{n},{c}\n" for n, c in ROWS)}
    encoded = {name: text.encode() for name, text in content.items()}
    for path in labelled(tmp_path, encoded):
        found = read_all(path, held_out=HELD_OUT)
        assert found == {10 * i: "ab"[i % 2] for i in range(6)}


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_may_be_composed_or_decomposed(tmp_path, form, other):
    names = [unicodedata.normalize(form, f"é{i}.png") for i in range(4)]
    labels = {
        name: unicodedata.normalize(("NFC", "NFD")[i % 2], "é") for i, name in enumerate(names)
    }
    rows = [[unicodedata.normalize(other, name), label] for name, label in labels.items()]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, png(10 * i))
        archive.writestr("dataset.json", json.dumps({"labels": rows}))
    found = read_all(tmp_path / "a.zip", held_out=HELD_OUT)
    assert found == dict.fromkeys((0, 10, 20, 30), "\xe9")


def test_a_zip_of_windows_keeps_its_classes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number, name in enumerate(("cat", "dog")):
            for i in range(3):
                content = png(100 * number + 10 * i)
                archive.writestr(zipfile.ZipInfo(f"{name}\\{i}.png"), content)
    found = read_all(tmp_path / "a.zip", held_out=HELD_OUT)
    assert found == {0: "cat", 10: "cat", 20: "cat", 100: "dog", 110: "dog", 120: "dog"}


def test_a_link_to_a_folder_that_is_listed_anyway_is_not_followed(tmp_path):
    write_images(tmp_path / "data", ("cat", "dog"), 3)
    os.symlink("..", tmp_path / "data" / "cat" / "up")
    os.symlink("dog", tmp_path / "data" / "again")
    write_images(tmp_path / "elsewhere", ("x",), 2)
    os.symlink(tmp_path / "elsewhere" / "x", tmp_path / "data" / "emu")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "fox")
    source = Folder(tmp_path / "data", size=4, held_out=HELD_OUT).open("train")
    assert source.class_names == ("cat", "dog", "emu")
    assert len(source) == 8


def test_several_tars_are_one_source_and_their_names_may_be_splits(tmp_path):
    for part, count in (("train-000", 4), ("train-001", 4), ("test-000", 2)):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as archive:
            for i in range(count):
                for suffix, content in (("png", png(10 * i)), ("cls", str(i % 2).encode())):
                    info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    source = Folder(tmp_path, size=4)
    assert [len(source.open(split)) for split in ("train", "held-out")] == [8, 2]
    assert source.open("train").class_names == ("0", "1")


def test_the_key_of_a_webdataset_ends_at_the_first_dot(tmp_path):
    for name, content in {
        "a.rgb.png": png(0),
        "a.cls": b"1",
        "b.png": png(10),
        "b.cls": b"0",
    }.items():
        (tmp_path / name).write_bytes(content)
    assert read_all(tmp_path, held_out=HELD_OUT) == {0: "1", 10: "0"}


@pytest.mark.parametrize("starts", [("./", ""), ("/", ""), ("x/", "x//")])
def test_folders_of_an_archive_are_the_same_however_they_are_written(tmp_path, starts):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"{starts[i % 2]}{'ab'[i // 2]}/{i}.png", png(10 * i))
    found = read_all(tmp_path / "a.zip", held_out=HELD_OUT)
    assert found == {0: "a", 10: "a", 20: "b", 30: "b"}


def write_named(path, names, labels=(0, 1, 2, 0, 1, 2)):
    """Write images of these classes as `datasets` does."""
    about = {"info": {"features": {"label": {"names": names}}}}
    table = pa.table({"image": [png(10 * i) for i in range(len(labels))], "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)


def test_two_classes_may_have_one_name(tmp_path):
    """As ImageNet's two cranes."""
    write_named(tmp_path / "a.parquet", ["crane", "dog", "crane"])
    prepare(
        tmp_path / "a.parquet", tmp_path / "out", PrepareConfig(8, held_out=HELD_OUT, workers=1)
    )
    index = load_index(tmp_path / "out")
    assert (index.class_names, index.classes["train"]) == (("crane", "dog", "crane"), (2, 2, 2))


def test_files_that_name_other_classes_are_refused(tmp_path):
    write_named(tmp_path / "a.parquet", ["cat", "dog", "owl"])
    write_named(tmp_path / "b.parquet", ["dog", "cat", "owl"])
    with pytest.raises(odelt.InputError, match=r"b\.parquet names other classes than the files"):
        Folder(tmp_path, size=4).open("train")
    for name, classes in {"train": ["cat", "dog"], "held-out": ["dog", "cat"]}.items():
        images, labels = np.full((20, 4, 4), 9, np.uint8), np.arange(20) % 2
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels, class_names=classes)
    data = Npz(tmp_path / "train.npz", held_out_path=tmp_path / "held-out.npz")
    with pytest.raises(odelt.InputError, match=r"held-out\.npz names other classes"):
        data.open("held-out")
