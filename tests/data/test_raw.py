"""Archives and Parquet files are not believed, and what lies in them is found as in a folder."""

import io
import os
import tarfile
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx import array_files
from odelt_eqx.data import items, parquet
from odelt_eqx.data.decode import BadImageError
from odelt_eqx.data.items import RawItems
from odelt_eqx.data.labels import UNLABELLED
from odelt_eqx.data.raw import find_raw_images


def png(grey=0):
    out = io.BytesIO()
    Image.new("L", (4, 4), grey).save(out, "PNG")
    return out.getvalue()


def write_folder(folder, *names):
    """Write images, each with a grey level of its own."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def write_zip(path, *names, content=None, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, name in enumerate(names):
            archive.writestr(name, png(number) if content is None else content)
    return path


def write_parquet(path, images, **options):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(images), path, **options)
    return path


def contents(found):
    return list(map(found.read, found.locations))


# Files that claim what is not so.


def header(name, size, kind=b"0", sparse=None):
    """The header of a member of a tar; a negative size is of base 256, as GNU writes large ones."""
    head = bytearray(512)
    head[: len(name)] = name
    head[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    head[156:157] = kind
    head[257:265] = b"ustar\x0000" if sparse is None else b"ustar  \0"
    if sparse is not None:
        head[483:495] = b"%011o\0" % sparse
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize(
    "member",
    [
        header(b"a.png", -512),
        header(b"a.png", -1024),
        header(b"a.png", -512, kind=b"V"),
        header(b"a.png", -512, kind=b"S", sparse=100),
    ],
    ids=["itself", "the one before", "no file", "sparse"],
)
def test_a_tar_whose_member_leads_back_is_refused_at_once(tmp_path, monkeypatch, member):
    """Reading it would never end."""
    following, seen = tarfile.TarFile.next, []

    def next_member(archive):
        seen.append(1)
        assert len(seen) < 10
        return following(archive)

    monkeypatch.setattr(tarfile.TarFile, "next", next_member)
    before = header(b"b.png", 0) + header(b"c.png", 0)
    (tmp_path / "a.tar").write_bytes(before + member + bytes(1024))
    with pytest.raises(odelt.InputError, match="does not lie after the member before it"):
        find_raw_images(tmp_path / "a.tar")


SIZE = 2**24 + 54321


@pytest.fixture
def lying_zip(tmp_path):
    """A zip whose only image claims 100 bytes and unpacks to 16 MiB."""
    path = write_zip(tmp_path / "a.zip", "a.png", content=bytes(SIZE), method=zipfile.ZIP_DEFLATED)
    claim = SIZE.to_bytes(4, "little")
    data = path.read_bytes()
    assert data.count(claim) == 2
    path.write_bytes(data.replace(claim, (100).to_bytes(4, "little")))
    return path


def test_a_member_of_a_zip_is_unpacked_up_to_the_size_it_claims(lying_zip, monkeypatch):
    made, unpacked = zlib.decompressobj, []

    class Counted:
        """A decompressor that notes how much it returns."""

        def __init__(self, *arguments):
            self.inner = made(*arguments)

        def decompress(self, *arguments):
            data = self.inner.decompress(*arguments)
            unpacked.append(len(data))
            return data

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    found = find_raw_images(lying_zip)
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        contents(found)
    assert sum(unpacked) < 2**16


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_may_unpack_to_any_size_is_refused_in_one_line(tmp_path, method):
    path = write_zip(tmp_path / "a.zip", "a.png", method=method)
    with pytest.raises(odelt.InputError, match=r"a\.png is compressed by another .* than deflate"):
        find_raw_images(path)


@pytest.mark.parametrize("column", ["image", "image in a struct", "label"])
def test_a_parquet_file_that_unpacks_to_far_more_is_refused_in_one_line(
    tmp_path, monkeypatch, column
):
    monkeypatch.setattr(array_files, "UNPACKED", 2**20)
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    large = [bytes(2**20) + b"%d" % i for i in range(3)]
    columns = {
        "image": {"image": large},
        "image in a struct": {"image": [{"bytes": value, "path": None} for value in large]},
        "label": {"image": [png()] * 3, "label": [value.decode() for value in large]},
    }
    path = write_parquet(tmp_path / "a.parquet", columns[column], **options)
    with pytest.raises(odelt.InputError, match=r"it unpacks to 0\.0 GiB; save it uncompressed if"):
        find_raw_images(path)
    options["compression"] = "none"
    assert len(find_raw_images(write_parquet(path, columns[column], **options))) == 3


def test_images_larger_than_any_image_are_refused_in_parquet_as_in_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "MAX_BYTES", 100)
    path = write_parquet(tmp_path / "a.parquet", {"image": [bytes(100), bytes(101)]})
    found = find_raw_images(path)
    assert found.read(found.locations[0]) == bytes(100)
    with pytest.raises(BadImageError, match="101 bytes, over 100"):
        found.read(found.locations[1])


@pytest.mark.filterwarnings("ignore:.*has no column 'label'")
@pytest.mark.parametrize("values", [["a.png"], [[1, 2]], [{"path": "a.png"}], [{"bytes": [1]}]])
def test_a_column_that_holds_no_bytes_is_refused_in_one_line(tmp_path, values):
    path = write_parquet(tmp_path / "a.parquet", {"image": values, "other": [png()]})
    with pytest.raises(odelt.InputError, match=r"has a column 'image' of .*, not of byte"):
        find_raw_images(path)
    assert contents(find_raw_images(path, image="other")) == [png()]


def test_what_lies_beside_bytes_in_a_struct_is_not_read(tmp_path):
    """A gigabyte of the same number, which the file holds once, would be unpacked."""
    pa = pytest.importorskip("pyarrow")
    kind = pa.struct([("bytes", pa.binary()), ("more", pa.list_(pa.int8()))])
    images = pa.array([{"bytes": png(), "more": [7] * 1000}], kind)
    found = find_raw_images(write_parquet(tmp_path / "a.parquet", {"image": images}))
    assert contents(found) == [png()]
    assert parquet._read_row_group(*found.locations[0][:3])[0].as_py() == {"bytes": png()}


# What is found.


@pytest.mark.filterwarnings("ignore:.*has no column 'label'")
def test_each_parquet_file_has_its_own_column_of_images(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"photo": [png(1)] * 2, "image": [png(0)] * 2})
    write_parquet(tmp_path / "b.parquet", {"image": [{"bytes": png(2), "path": "x"}]})
    write_parquet(tmp_path / "c.parquet", {"picture": [png(3)], "id": [3]})
    found = find_raw_images(tmp_path, image="photo")
    assert contents(found) == [png(1), png(1), png(2), png(3)]


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_a_file_that_takes_the_place_of_another_is_read_anew(tmp_path, kind):
    def write(grey):
        path = tmp_path / f"new.{kind}"
        if kind == "zip":
            write_zip(path, "a.png", "b.png", content=png(grey))
        else:
            write_parquet(path, {"image": [png(grey)] * 2})
        os.replace(path, tmp_path / f"a.{kind}")
        return contents(find_raw_images(tmp_path / f"a.{kind}"))

    assert write(10) == [png(10)] * 2
    assert write(200) == [png(200)] * 2


HIDDEN = [".git/a.png", "a/.ipynb_checkpoints/0-checkpoint.png", "__MACOSX/a/._0.png", "a/._0.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_hidden_in_a_folder_is_hidden_in_an_archive(tmp_path, kind):
    shown = ["./a/0.png", "./b/0.png"] if kind == "tar" else ["a/0.png", "b/0.png"]
    folder = write_folder(tmp_path / "all", *shown, *HIDDEN)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "metadata.csv").write_text("file_name,label\n0.png,a\n")
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.*")):
                archive.write(file, file.relative_to(folder).as_posix())
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(folder, ".")
    found, unpacked = find_raw_images(path), find_raw_images(folder)
    assert contents(found) == contents(unpacked) == [png(0), png(1)]
    assert found.class_names == unpacked.class_names == ("a", "b")


def test_hidden_parquet_files_are_left_out(tmp_path):
    for name in ("a.parquet", "._a.parquet", ".cache/b.parquet"):
        write_parquet(tmp_path / name, {"image": [png()]})
    assert find_raw_images(tmp_path).names == ["a.parquet#0"]


# Classes.


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_is_only_held_out_is_refused(tmp_path, split):
    """As in Tiny ImageNet, whose held-out images lie in one folder."""
    names = [*(f"train/n0{i}/images/{j}.png" for i in "12" for j in "ab"), f"{split}/images/0.png"]
    with pytest.raises(odelt.InputError, match="has the class 'images' in its held-out split alon"):
        find_raw_images(write_folder(tmp_path, *names))


def test_a_class_that_is_only_held_out_is_refused_in_parquet(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"image": [png()] * 2, "label": ["a", "b"]})
    write_parquet(tmp_path / "test.parquet", {"image": [png()], "label": ["c"]})
    with pytest.raises(odelt.InputError, match="has the class 'c' in its held-out split alone"):
        find_raw_images(tmp_path)


def test_letters_and_their_accents_may_be_written_apart(tmp_path):
    """As macOS does."""
    apart, together = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    names = [f"train/{together}/0.png", "train/b/0.png", f"val/{apart}/0.png", "val/b/0.png"]
    found = find_raw_images(write_folder(tmp_path / "both", *names))
    assert found.class_names == ("b", together)
    assert found.labels.tolist() == [0, 1, 0, 1]
    held_out = find_raw_images(write_zip(tmp_path / "a.zip", f"{apart}/0.png"))
    assert held_out.relabel(("b", together)).labels.tolist() == [1]
    one = find_raw_images(write_zip(tmp_path / "b.zip", f"{apart}/0.png", f"{together}/1.png"))
    assert one.class_names == UNLABELLED


def test_a_held_out_folder_of_one_class_has_that_class(tmp_path):
    found = find_raw_images(write_folder(tmp_path / "x", "b/0.png", "b/1.png"))
    assert found.relabel(("a", "b")).labels.tolist() == [1, 1]
    assert found.relabel(UNLABELLED).labels.tolist() == [0, 0]
    assert found.relabel(("all", "b")).labels.tolist() == [0, 0]
    other = find_raw_images(write_folder(tmp_path / "y", "0.png"))
    with pytest.raises(odelt.InputError, match=r"y has no classes, the training data have a, b$"):
        other.relabel(("a", "b"))
    tables = write_parquet(tmp_path / "z" / "a" / "0.parquet", {"image": [png()]}).parents[1]
    write_parquet(tables / "b" / "0.parquet", {"image": [png()]})
    with pytest.raises(odelt.InputError, match="z has no classes"):
        find_raw_images(tables).relabel(("a", "b"))
    with pytest.raises(odelt.InputError, match=r"have 0, 1, 2, \.\.\.$"):
        other.relabel(tuple("0123"))


def test_many_classes_are_relabelled_in_no_time(tmp_path):
    class Name(str):
        """A class name that counts how often it is compared."""

        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

    names = tuple(Name(i) for i in range(1000))
    labels = np.arange(1000, dtype=np.int32)
    found = RawItems(tmp_path, names, labels, names, names, len)
    assert found.relabel(names[::-1]).labels.tolist() == labels[::-1].tolist()
    assert Name.compared < 10_000
