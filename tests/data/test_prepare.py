"""Raw images of any kind become the same shards, however the work is divided or interrupted."""

import json
import tarfile
import zipfile
from threading import Thread

import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.data import Folder, HeldOut, Shards, prepare as prepare_module
from odelt_eqx.data.prepare import ADDED, PrepareConfig, prepare
from odelt_eqx.data.records import load_index
from tests.data.bad_images import UNUSABLE, USABLE, write_all
from tests.data.makers import write_images

HELD = HeldOut(0.3)


def config(**changes):
    return PrepareConfig(**{"size": 8, "held_out": HELD, "chunk": 5, "workers": 1, **changes})


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", count=9)


def contents(folder):
    """The content of every file of shards and of the index."""
    files = [*folder.glob("*.array_record"), folder / "index.json", folder / "skipped.jsonl"]
    return {path.name: path.read_bytes() for path in files}


def test_shards_hold_what_the_folder_holds(images, tmp_path):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in images.rglob("*.png")}
    skipped, index = prepare(images, tmp_path / "out", config())
    assert skipped.read_text() == ""
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in images.rglob("*.png")} == before
    shards, folder = Shards(tmp_path / "out"), Folder(images, size=8, held_out=HELD)
    for split in ("train", "held-out"):
        ours, theirs = shards.open(split), folder.open(split)
        assert (len(ours), ours.class_names) == (len(theirs), theirs.class_names)
        for i in range(len(ours)):
            np.testing.assert_array_equal(ours[i]["x"], theirs[i]["x"])
            assert ours[i]["condition"] == theirs[i]["condition"]
    found = load_index(index.parent)
    assert sum(map(sum, found.classes.values())) == 18
    assert found.classes["train"][0] + found.classes["held-out"][0] == 9
    assert (found.held_out, found.skipped, found.layout.shape) == (HELD, 0, (8, 8, 3))


def as_zip(source, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(source.rglob("*.png")):
            archive.write(file, f"set/{file.relative_to(source)}")
    return path


def as_tar(source, path):
    with tarfile.open(path, "w") as archive:
        archive.add(source, "set")
    return path


def as_parquet(source, path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.mkdir()
    files = sorted(source.rglob("*.png"))
    features = {"label": {"_type": "ClassLabel", "names": ["cats", "dogs"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for number in range(2):
        own = files[9 * number : 9 * number + 9]
        rows = [{"bytes": file.read_bytes(), "path": file.name} for file in own]
        labels = [int(file.parent.name == "dogs") for file in own]
        table = pa.table({"image": rows, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, path / f"{number}.parquet", row_group_size=4)
    return path


@pytest.mark.parametrize("pack", [as_zip, as_tar, as_parquet])
def test_archives_and_parquet_give_the_images_of_a_folder(images, tmp_path, pack):
    source = pack(images, tmp_path / pack.__name__[3:])
    prepare(source, tmp_path / "out", config())
    found = [Shards(tmp_path / "out").open(split) for split in ("train", "held-out")]
    assert all(source.class_names == ("cats", "dogs") for source in found)
    seen = {
        (int(e["condition"]), round(127.5 * float(e["x"][0, 0, 0] + 1)))
        for source in found
        for e in map(source.__getitem__, range(len(source)))
    }
    assert seen == {(label, 40 * label + 5 * n) for label in (0, 1) for n in range(9)}


def test_shards_do_not_depend_on_how_the_work_is_shared_out(images, tmp_path):
    prepare(images, tmp_path / "alone", config())
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / ".plan.partial.json").write_text("{")  # as another process begins
    for part in ("2/3", "3/3"):
        paths = prepare(images, tmp_path / "parts", config(part=part))
        assert paths == [tmp_path / "parts" / "skipped.jsonl"]
    paths = prepare(images, tmp_path / "parts", config(part="1/3", workers=2))
    assert paths[-1] == tmp_path / "parts" / "index.json"
    assert contents(tmp_path / "alone") == contents(tmp_path / "parts")


def test_an_interrupted_job_resumes_after_its_finished_shards(images, tmp_path, monkeypatch):
    prepare(images, tmp_path / "whole", config())
    out, decode, calls = tmp_path / "out", prepare_module.decode_image, []

    def interrupted(data, **options):
        calls.append(data)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return decode(data, **options)

    monkeypatch.setattr(prepare_module, "decode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(images, out, config())
    assert not list(out.glob(".*.partial*"))
    assert not (out / "index.json").exists()
    with pytest.raises(odelt.InputError, match="is not a folder of shards"):
        Shards(out).open("train")
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*.array_record")}
    assert kept
    prepare(images, out, config())
    assert len(calls) == 8 + 13  # the five of the first chunk are not decoded again
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert contents(out) == contents(tmp_path / "whole")
    prepare(images, out, config())
    assert len(calls) == 8 + 13


def test_images_that_cannot_be_used_are_listed_with_the_reason(tmp_path):
    source, out = write_all(tmp_path / "all"), tmp_path / "out"
    with pytest.raises(odelt.InputError, match=r"more than max_failures 0\.01; .*says why"):
        prepare(source, out, config())
    skipped, _ = prepare(source, out, config(max_failures=0.5))
    rows = {row["name"]: row["reason"] for row in map(json.loads, skipped.open())}
    assert set(rows) == {f"unusable/{name}" for name in UNUSABLE}
    for name, (_, reason) in UNUSABLE.items():
        assert reason in rows[f"unusable/{name}"]
    index = load_index(out)
    assert index.skipped == len(UNUSABLE)
    assert index.classes["train"][1] + index.classes["held-out"][1] == len(USABLE)
    assert index.classes["train"][0] + index.classes["held-out"][0] == 0


def test_a_damaged_member_of_an_archive_is_skipped(images, tmp_path):
    path = as_zip(images, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"set/cats/3.png") + 40] ^= 255
    path.write_bytes(data)
    skipped, _ = prepare(path, tmp_path / "out", config(max_failures=0.1))
    assert [json.loads(line)["name"] for line in skipped.open()] == ["set/cats/3.png"]


def test_two_parts_that_end_at_once_list_the_images_that_each_skipped(
    images, tmp_path, monkeypatch
):
    for name in ("cats/1.png", "dogs/8.png"):
        (images / name).write_bytes(b"no image")
    load, threads = prepare_module._load_outcomes, []
    do = lambda part: prepare(images, tmp_path / "out", config(part=part, max_failures=0.5))

    def load_slowly(chunks):
        outcomes = load(chunks)
        if len(chunks) == 4 and not threads:  # the first part has ended, and looks for the others
            threads.append(Thread(target=do, args=["2/2"]))
            threads[0].start()
            threads[0].join(0.3)
        return outcomes

    monkeypatch.setattr(prepare_module, "_load_outcomes", load_slowly)
    do("1/2")
    threads[0].join()
    skipped = map(json.loads, (tmp_path / "out" / "skipped.jsonl").open())
    assert [row["name"] for row in skipped] == ["cats/1.png", "dogs/8.png"]


def test_another_source_may_be_the_held_out_split(tmp_path):
    train = write_images(tmp_path / "train", classes=("ants", "cats", "dogs"), count=3)
    test = write_images(tmp_path / "test", classes=("cats", "dogs"), count=2)
    _, path = prepare(train, tmp_path / "out", config(held_out_source=test))
    index = load_index(path.parent)
    assert index.classes == {"train": (3, 3, 3), "held-out": (0, 2, 2)}
    assert index.held_out is None
    write_images(test, classes=("emus",))
    with pytest.raises(odelt.InputError, match="lack: emus"):
        prepare(train, tmp_path / "more", config(held_out_source=test))


def test_a_folder_of_other_work_is_refused(images, tmp_path):
    out = tmp_path / "out"
    prepare(images, out, config())
    with pytest.raises(odelt.InputError, match="was begun with other size; choose another"):
        prepare(images, out, config(size=4))
    with pytest.raises(odelt.InputError, match="was begun with other images"):
        prepare(images, out, config(held_out=HeldOut(0.3, seed=1)))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(odelt.InputError, match="exists and is not a folder of shards"):
        prepare(images, tmp_path / "thesis", config())
    with pytest.raises(odelt.InputError, match="which is only read"):
        prepare(images, images / "shards", config())


def test_shards_of_another_scale_are_refused(tmp_path):
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    for i in range(12):
        levels = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(levels).save(source / f"{i:02}.png")
    prepare(source, out, config(part="1/2"))
    with pytest.raises(odelt.InputError, match="was begun with other white; choose another"):
        prepare(source, out, config(part="2/2", white=4095))
    assert prepare(source, out, config(part="2/2", white=255))[-1] == out / "index.json"  # as found


@pytest.mark.filterwarnings("ignore:.*no column 'label'")
def test_shards_of_another_column_are_refused(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [USABLE["plain.png"]] * 3, "mask": [USABLE["bits.png"]] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    prepare(tmp_path / "a.parquet", tmp_path / "out", config())
    with pytest.raises(odelt.InputError, match="was begun with other image_column; choose"):
        prepare(tmp_path / "a.parquet", tmp_path / "out", config(image="mask"))


def test_a_job_that_an_earlier_version_began_resumes(images, tmp_path):
    path = tmp_path / "out" / "plan.json"
    prepare(images, path.parent, config(part="1/2"))
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({name: plan[name] for name in plan if name not in ADDED}))
    prepare(images, path.parent, config(part="2/2"))
    assert json.loads(path.read_text()) == plan
    with pytest.raises(odelt.InputError, match="was begun with other white"):
        prepare(images, path.parent, config(white=4095))


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_shard_that_was_removed_is_made_again(images, tmp_path, split):
    out = tmp_path / "out"
    prepare(images, out, config())
    whole = contents(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    shard = sorted(out.glob(f"{split}-*"))[-1]
    shard.unlink()
    prepare(images, out, config())
    assert contents(out) == whole
    remade = {p.name for p in out.glob("*.array_record") if p.stat().st_mtime_ns != times[p.name]}
    number = shard.name.rsplit("-", 1)[-1]
    assert remade == {name for name in times if name.endswith(number)}  # those of its chunk alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "0/3"}, "part must be I/N with I from 1 to N, like 3/16; got 0/3"),
        ({"part": "third"}, "got third"),
        ({"size": 0}, "size must be at least 1; got 0"),
        ({"channels": 4}, "channels must be 1 or 3; got 4"),
        ({"workers": 0}, "workers must be at least 1; got 0"),
        ({"max_failures": 1.5}, r"max_failures must lie in \[0, 1\]; got 1.5"),
    ],
)
def test_impossible_numbers_are_refused(changes, message):
    with pytest.raises(odelt.InputError, match=message):
        PrepareConfig(**changes)


def test_sources_without_images_are_refused_in_one_line(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "no image")
    for name, message in (
        ("nowhere", "there is no folder or file"),
        ("a.tar", "cannot be read as a zip, an uncompressed tar or Parquet"),
        ("a.zip", "holds no images"),
    ):
        with pytest.raises(odelt.InputError, match=message) as error:
            prepare(tmp_path / name, tmp_path / "out", config())
        assert "\n" not in str(error.value)


def test_parquet_files_of_other_columns_are_refused_in_one_line(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    for columns, message in (
        ({"photo": [b""], "mask": [b""]}, "has no column 'image'; it has photo, mask: name one"),
        ({"image": [b""], "label": [None]}, "some rows of .* have no class"),
        ({"image": [b""], "label": [-1]}, "has the label -1"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(odelt.InputError, match=message):
            prepare(path, tmp_path / "out", config())
    path.write_bytes(b"no table")
    with pytest.raises(odelt.InputError, match="cannot be read"):
        prepare(path, tmp_path / "out", config())
    pq.write_table(pa.table({"image": [b"", "x"[:0].encode()], "label": ["b", "a"]}), path)
    skipped, index = prepare(path, tmp_path / "out", config(max_failures=1.0))
    assert load_index(index.parent).class_names == ("a", "b")
    assert len(skipped.read_text().splitlines()) == 2
