"""Damaged and hostile files: one line of error or a right result, in bounded time and memory."""

import dataclasses
import gzip
import io
import json
import pickle
import random
import re
import resource
import shutil
import struct
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx import cli
from odelt_eqx.condition import as_condition
from odelt_eqx.config import LoggingConfig, OptimizerConfig, TrainConfig, load_config, save_config
from odelt_eqx.data import Adm, Folder, HeldOut, Npz, Shards, Tfds
from odelt_eqx.data.arrays import read_idx
from odelt_eqx.data.decode import BadImageError, decode_image
from odelt_eqx.data.raw import find_raw_images
from odelt_eqx.data.records import load_index
from odelt_eqx.data.source import Contents
from odelt_eqx.errors import InputError, reason
from odelt_eqx.evaluation.classifier import ClassifierConfig
from odelt_eqx.evaluation.features import Classifier
from odelt_eqx.evaluation.grid import Bounds, Grid, GridConfig, Row, load_grid
from odelt_eqx.evaluation.measure import Store
from odelt_eqx.evaluation.metrics import Statistics, load_statistics, save_statistics
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.evaluation.samples import SampleRequest
from odelt_eqx.files import member_path, read_json_lines
from odelt_eqx.interop import load_autoencoder, load_reference
from odelt_eqx.interop.latent_files import find_latents
from odelt_eqx.interop.named import Stored
from odelt_eqx.interop.safetensors import load_safetensors, save_safetensors, write_module
from odelt_eqx.interop.torch_file import open_torch
from odelt_eqx.interop.unpickle import unpickle
from odelt_eqx.nn.classifier import ConvNet, ConvNetConfig
from odelt_eqx.objective import DeepSupervision, LiveReflow, MeanFlow, Shortcut
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.load import load_contents
from odelt_eqx.training.logging import read_metrics
from tests.conftest import GOLDEN, NETWORK, TINY, TINY_RUN
from tests.data.makers import write_shards
from tests.data.test_tfds import write_tfds
from tests.interop.test_latents import lightning_dit, npz_of_moments, repa
from tests.interop.test_sit import CONFIG as SIT

SECONDS, MEGABYTES = 2.0, 300
REFUSED = (InputError, BadImageError)
SMALL = dataclasses.replace(TINY, hidden_size=8)
REFERENCE = odelt.DiTConfig(**json.loads((GOLDEN / "small.json").read_text())["config"])
ROW = Row(
    config=odelt.SampleConfig(time=odelt.FixedSteps(steps=4), depth=2),
    quality=Quality(1.0, 0.5, precision=0.5),
    accepted=4.0,
    rejected=0.0,
    evaluations=4.0,
    blocks=8.0,
    milliseconds=1.5,
    memory=1000,
    device_memory=None,
    samples="row.png",
)
GRID = Grid(
    *("a run", 10, (8, 8, 1), "pixels", "the held-out split", "by neighbours", 10, 5, 0, "cpu"),
    jax="0.10",
    bounds=Bounds(Quality(0.5), Quality(9.0)),
    rows=(ROW, dataclasses.replace(ROW, milliseconds=3.0)),
)


def image(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, 0)).save(out, "PNG")
    return out.getvalue()


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_table(folder: Path, name: str, text: str) -> None:
    for i in range(6):
        (folder / f"{i}.png").write_bytes(image(i))
    (folder / name).write_text(text)


def write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as out:
        for i in range(6):
            out.writestr(f"{'ab'[i % 2]}/{i}.png", image(i))


def write_tar(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as out:
        for i in range(4):
            for suffix, content in (("png", image(i)), ("cls", b"%d" % (i % 2))):
                info = tarfile.TarInfo(f"{i}.{suffix}")
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))


def write_parquet(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": [image(i) for i in range(6)], "label": [0, 1, 2] * 2})
    pytest.importorskip("pyarrow.parquet").write_table(table, folder / "a.parquet")


def write_archive(folder: Path, name: str) -> None:
    arrays = {"images": np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8, 1)}
    save = np.savez if name == "plain.npz" else np.savez_compressed
    save(folder / name, labels=np.arange(40) % 10, **arrays)


def write_idx_file(folder: Path, name: str) -> None:
    content = struct.pack(">4B3I", 0, 0, 8, 3, 4, 8, 8) + bytes(range(256))
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def write_small_shards(folder: Path) -> None:
    values = np.arange(10 * 48, dtype=np.uint8).reshape(10, 4, 4, 3)
    write_shards(folder, "images", values, np.arange(10) % 3)


def write_features(folder: Path) -> None:
    shutil.rmtree(folder)
    write_tfds(folder)


def write_autoencoder_config(folder: Path) -> None:
    config = str(np.load(GOLDEN / "autoencoder_tiny.npz")["config"])
    (folder / "config.json").write_text(config)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")


def write_adm(folder: Path) -> None:
    images = np.arange(10 * 192, dtype=np.uint8).reshape(10, 8, 8, 3)
    np.savez(folder / "adm.npz", images, np.arange(10) % 3)


def write_lightning_dit(folder: Path) -> None:
    lightning_dit(folder / "latents")
    (folder / "latents" / "latents_rank00_shard001.safetensors").unlink()


def write_classifier(folder: Path) -> None:
    config = ConvNetConfig((8, 8, 1), num_classes=3, width=4, features=4)
    net = ConvNet(config, key=jax.random.key(0))
    write_module(net, config, folder / "classifier.safetensors", ConvNetConfig)


def read_latents(path: Path) -> Any:
    items = find_latents(path).items
    return [items.read(location) for location in items.locations]


def read_folder(path: Path) -> Any:
    return Folder(path, size=8, held_out=HeldOut(0.3)).find()


def read_parts(folder: Path, source: Any) -> Any:
    return [source.open("train")[i] for i in (0, -1)]


def read_torch(path: Path) -> Any:
    def read(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: read(item) for name, item in value.items()}
        return value.read() if isinstance(value, Stored) else value

    with open_torch(path) as content:
        return read(content)


def idx_of(path: Path) -> np.ndarray:
    found = read_idx(path)
    assert found.nbytes <= 4096
    return found


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader and a valid input of its own.

    Args:
        name: of the file that is damaged.
        write: writes the files to a folder.
        read: reads the damaged file.
        json: whether it is a JSON text, values of which are replaced as well.
        share: of the inputs of the short form, where reading one takes long.
    """

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    json: bool = False
    share: float = 1.0


def of_text(name: str, text: str, read: Callable[[Path], Any]) -> Reader:
    return Reader(name, lambda folder: (folder / name).write_text(text), read, json=True)


def of_json(name: str, value: Any, read: Callable[[Path], Any]) -> Reader:
    return of_text(name, json.dumps(to_dict(value)), read)


def copy_of(name: str) -> Callable[[Path], Any]:
    return lambda folder: shutil.copy(GOLDEN / name, folder / name)


STORED = {"settings": {"a": 1}, "measured": to_dict(ROW)}
TABLE = [[f"{i}.png", i % 3] for i in range(6)]
READERS = {
    "config": Reader(
        "config.json", lambda f: save_config(TINY_RUN, f / "config.json"), load_config, json=True
    ),
    "grid": of_json("grid.json", GRID, load_grid),
    "rows": of_text(
        "rows.jsonl",
        lines(STORED, STORED),
        lambda p: Store(p).measure({"a": 1}, Row, lambda: ROW),
    ),
    "metrics": of_text(
        "metrics.jsonl",
        lines({"step": 1, "loss": 0.5}, {"step": 2, "loss": None}),
        lambda p: list(read_metrics(p.parent)),
    ),
    "contents": of_json(
        "data.json", Contents(("a", "b"), 4, "f"), lambda p: load_contents(p.parent)
    ),
    "index": Reader(
        "index.json",
        write_small_shards,
        lambda p: read_parts(p.parent, Shards(p.parent)),
        json=True,
    ),
    "tfds": Reader(
        "dataset_info.json",
        write_features,
        lambda p: read_parts(p.parent, Tfds(p.parent, size=6)),
        json=True,
    ),
    "dataset.json": Reader(
        "dataset.json",
        lambda f: write_table(f, "dataset.json", json.dumps({"labels": TABLE})),
        lambda p: read_folder(p.parent),
        json=True,
    ),
    "metadata.csv": Reader(
        "metadata.csv",
        lambda f: write_table(
            f, "metadata.csv", "file_name,label\n" + "".join(f"{n},{c}\n" for n, c in TABLE)
        ),
        lambda p: read_folder(p.parent),
    ),
    "metadata.jsonl": Reader(
        "metadata.jsonl",
        lambda f: write_table(
            f, "metadata.jsonl", lines(*({"file_name": n, "label": c} for n, c in TABLE))
        ),
        lambda p: read_folder(p.parent),
        json=True,
    ),
    "zip": Reader("a.zip", write_zip, read_folder),
    "tar": Reader("a.tar", write_tar, read_folder),
    "parquet": Reader("a.parquet", write_parquet, read_folder),
    "array_record": Reader(
        "train-00000.array_record",
        write_small_shards,
        lambda p: read_parts(p.parent, Shards(p.parent)),
    ),
    "png": Reader(
        "a.png",
        lambda f: (f / "a.png").write_bytes(image(9)),
        lambda p: decode_image(p.read_bytes(), 8),
    ),
    "npz": Reader(
        "plain.npz", lambda f: write_archive(f, "plain.npz"), lambda p: Npz(p).open("train")
    ),
    "npz, compressed": Reader(
        "a.npz", lambda f: write_archive(f, "a.npz"), lambda p: Npz(p).open("train")
    ),
    "adm": Reader("adm.npz", write_adm, lambda p: read_parts(p.parent, Adm(p))),
    "latents, npz": Reader(
        "latents/a.npz", lambda f: npz_of_moments(f / "latents"), lambda p: read_latents(p.parent)
    ),
    "latents, npy": Reader(
        "latents/00000/img-mean-std-00000000.npy",
        lambda f: repa(f / "latents"),
        lambda p: read_latents(p.parents[1]),
    ),
    "latents, classes": Reader(
        "latents/dataset.json",
        lambda f: repa(f / "latents"),
        lambda p: read_latents(p.parent),
        json=True,
    ),
    "latents, safetensors": Reader(
        "latents/latents_rank00_shard000.safetensors",
        write_lightning_dit,
        lambda p: read_latents(p.parent),
    ),
    "latents, statistics": Reader(
        "latents/latents_stats.pt", write_lightning_dit, lambda p: read_latents(p.parent)
    ),
    "classifier": Reader(
        "classifier.safetensors", write_classifier, lambda p: Classifier(p).open((8, 8, 1))
    ),
    "sit": Reader(
        "sit_tiny.bare.pt",
        copy_of("sit_tiny.bare.pt"),
        lambda p: odelt.load_sit(p, SIT),
        share=0.25,
    ),
    "statistics": Reader(
        "s.npz",
        lambda f: save_statistics(Statistics.of(np.eye(5, 3)), f / "s.npz"),
        load_statistics,
    ),
    "idx": Reader("a-idx3", lambda f: write_idx_file(f, "a-idx3"), idx_of),
    "idx, compressed": Reader("a.gz", lambda f: write_idx_file(f, "a.gz"), idx_of),
    "pickle": Reader(
        "a.pkl",
        lambda f: (f / "a.pkl").write_bytes(pickle.dumps({"a": np.eye(3), "b": [1, (2, "x")]})),
        unpickle,
    ),
    "reference": Reader(
        "small.reference.pkl",
        copy_of("small.reference.pkl"),
        lambda p: load_reference(p, REFERENCE),
        share=0.05,
    ),
    "torch": Reader("sit_tiny.bare.pt", copy_of("sit_tiny.bare.pt"), read_torch),
    "torch, older": Reader(
        "sit_tiny.legacy.pt", copy_of("sit_tiny.legacy.pt"), read_torch, share=0.2
    ),
    "safetensors": Reader(
        "a.safetensors",
        lambda f: save_safetensors(SMALL.build(key=jax.random.key(0)), f / "a.safetensors"),
        load_safetensors,
    ),
    "autoencoder": Reader(
        "config.json", write_autoencoder_config, lambda p: load_autoencoder(p.parent), json=True
    ),
}
"""Every reader of a file that may come from elsewhere."""

AWKWARD = [
    *(None, True, -1, 0, 10**30, 2**63, 2**31, 3.7, -0.0, 1e300, "x", "7", "", "../x", "a\0b"),
    *([], {}, [[]], {"type": "x"}, [1] * 9, "\ud800", "a\nb", float("nan"), float("inf")),
]
TEXTS = {
    "no UTF-8": b"\xff\xfe{}",
    "null": b"null",
    "list": b"[]",
    "string": b'"x"',
    "number": b"3",
    "empty": b"",
    "5,000 digits": b'{"steps": ' + b"9" * 5000 + b"}",
    "brackets": b"[" * 200_000,
    "objects": b'{"a":' * 200_000,
    "not finite": b'{"a": NaN, "steps": Infinity, "b": 1e999}',
    "NUL": b"\0" * 100,
}


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """The place of every value in nested dictionaries and lists."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    found = []
    for key, inner in items:
        found.append((*place, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*place, key))
    return found


def replace_value(content: bytes, draw: random.Random) -> bytes:
    """One value of a JSON text, or of one of its lines, replaced or removed."""
    try:
        rows = [json.loads(content)]
    except ValueError:
        rows = [json.loads(line) for line in content.splitlines()]
    row = draw.choice(rows)
    *path, last = draw.choice(places(row))
    for key in path:
        row = row[key]
    if draw.random() < 0.1:
        del row[last]
    else:
        row[last] = draw.choice(AWKWARD)
    return "\n".join(map(json.dumps, rows)).encode() + b"\n"


def damage(content: bytes, draw: random.Random) -> bytes:
    """A content cut off, or with bytes changed, inserted or repeated."""
    kind, data = draw.randrange(6), bytearray(content)
    if kind == 0:
        return content[: draw.randrange(len(content))]
    if kind == 1:
        at = draw.randrange(len(content))
        return content[:at] + draw.randbytes(draw.randrange(1, 9)) + content[at:]
    if kind == 2:
        start, end = sorted(draw.randrange(len(content)) for _ in range(2))
        return content[:end] + content[start:end][:4096] + content[end:]
    reach = len(data) if kind < 5 else min(len(data), 400)
    for _ in range(1 if kind == 3 else draw.randrange(1, 12)):
        at = draw.randrange(reach)
        data[at] = draw.choice([0, 255, draw.randrange(256), data[at] ^ 1 << draw.randrange(8)])
    return bytes(data)


def peak() -> float:
    """The most memory that this process has used so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attempt(read: Callable[[], Any]) -> Any:
    """What a reader returns, or None if it refuses in one line; checks both, and its cost."""
    began, before, found = time.process_time(), peak(), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read()
        except REFUSED as error:
            text = str(error)
            assert text.isprintable(), text
            assert len(text) < 1500, text
            assert not re.search(r"0x[0-9a-f]{6}", text), text
    assert time.process_time() - began < SECONDS
    assert peak() - before < MEGABYTES
    return found


def fuzz(name: str, folder: Path, count: int) -> None:
    """Read the input of a reader, then damaged ones."""
    reader, draw = READERS[name], random.Random(name)
    reader.write(folder)
    path = folder / reader.name
    content = path.read_bytes()
    attempt(lambda: reader.read(path))  # what happens once does not count
    for number in range(count):
        as_json = reader.json and number % 2
        damaged = (replace_value if as_json else damage)(content, draw)
        path.write_bytes(damaged)
        try:
            attempt(lambda: reader.read(path))
        except BaseException:
            print(f"input {number} of {name}: {damaged[:2000]!r}")
            raise


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_damage_in_one_line(folder, name):
    fuzz(name, folder, round(200 * READERS[name].share))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_much_damage_in_one_line(folder, name):
    fuzz(name, folder, 5000)


@pytest.mark.parametrize("name", [n for n, reader in READERS.items() if reader.json])
def test_texts_of_another_kind_are_refused(folder, name):
    reader = READERS[name]
    reader.write(folder)
    for text in TEXTS.values():
        (folder / reader.name).write_bytes(text)
        found = attempt(lambda: reader.read(folder / reader.name))
        assert found in (None, []), text[:80]


def agree(given: Any, found: Any) -> bool:
    """Whether what was read says what a JSON text says, wherever that says something."""
    if isinstance(given, dict):
        known = given.keys() & found.keys() if isinstance(found, dict) else given.keys()
        return all(agree(given[name], found[name]) for name in known)
    if isinstance(given, list):
        return len(given) == len(found) and all(map(agree, given, found))
    same = type(given) is type(found) or (type(given), type(found)) == (int, float)
    return same and given == found


@pytest.mark.parametrize("name", ["grid", "contents"])
def test_no_value_is_converted(folder, name):
    reader, draw = READERS[name], random.Random(0)
    reader.write(folder)
    path = folder / reader.name
    content = path.read_bytes()
    for _ in range(200):
        path.write_bytes(replace_value(content, draw))
        found = attempt(lambda: reader.read(path))
        if found is not None:
            assert agree(json.loads(path.read_bytes()), json.loads(json.dumps(to_dict(found))))


def write_evil_index(folder: Path, name: str) -> None:
    """Rename the only shard of a split in the index, and on disk if that is another place."""
    write_small_shards(folder)
    index = json.loads((folder / "index.json").read_text())
    files = index["shards"]["held-out"]
    files[name] = files.pop("held-out-00000.array_record")
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", "a/b", "a\\b", "c:b", "", "a\0"]
)
def test_names_in_files_do_not_lead_out_of_the_folder(folder, name):
    write_evil_index(folder, name)
    (folder.parent / "secret").write_bytes((folder / "held-out-00000.array_record").read_bytes())
    with pytest.raises(InputError, match="is not the name of a shard"):
        load_index(folder)
    with pytest.raises(InputError, match="is not the name of a file"):
        member_path(folder, name)


def test_links_do_not_lead_out_of_the_folder(folder):
    outside = folder.parent / "secret.png"
    outside.write_bytes(image(1))
    (folder / "samples").mkdir()
    (folder / "samples" / "row.png").symlink_to(outside)
    with pytest.raises(InputError, match="is not the name of a file"):
        member_path(folder, "samples", "row.png")
    write_evil_index(folder, "linked.array_record")
    (folder / "linked.array_record").symlink_to(outside)
    with pytest.raises(InputError, match="is not the name of a file"):
        Shards(folder).open("held-out")


def test_damaged_lines_are_counted_but_not_the_one_being_written(folder):
    path = folder / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\xff\n[2]\n{"a": NaN}\n\n{"a": 2}\n{"a"')
    with pytest.warns(UserWarning, match="damaged lines are skipped, 3 of 6"):
        assert list(read_json_lines(path)) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b'{"a": 1}\n{"a"')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_json_lines(path)) == [{"a": 1}]


def bomb_npz(path: Path) -> None:
    np.savez_compressed(path, images=np.zeros((2**21, 8, 8, 1), np.uint8))


def bomb_header(path: Path) -> None:
    """An array of 8 bytes whose header claims more."""
    member = io.BytesIO()
    shape = (10**12, 8, 8, 1)
    head = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, head)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("images.npy", member.getvalue() + bytes(8))


def bomb_of_nothing(path: Path) -> None:
    np.savez(path, images=np.zeros((10**12, 0, 8, 1), np.uint8))


@pytest.mark.parametrize("make", [bomb_npz, bomb_header, bomb_of_nothing])
def test_an_npz_file_is_not_believed(folder, make):
    make(folder / "a.npz")
    assert attempt(lambda: Npz(folder / "a.npz").open("train")) is None


@pytest.mark.parametrize(
    "sizes", [(2**27,), (2**32 - 1,) * 3, (2**32 - 1, 0, 2**32 - 1), (1,) * 255]
)
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_an_idx_file_is_not_believed(folder, sizes, name):
    head = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
    content = head + bytes(2**27 if sizes == (2**27,) and name == "a.gz" else 1)
    (folder / name).write_bytes(gzip.compress(content, 1) if name == "a.gz" else content)
    assert attempt(lambda: read_idx(folder / name)) is None


@pytest.mark.parametrize("lengths", [["1000000000000"], [-3, 2], ["x"], [10**30]])
def test_lengths_of_shards_are_not_believed(folder, lengths):
    write_features(folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = [*lengths, *info["splits"][0]["shardLengths"]][:2]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert attempt(lambda: Tfds(folder, size=6).open("train")) is None


@pytest.mark.parametrize("repeated", ["label", "image", "image in a struct"])
def test_what_a_parquet_file_repeats_is_not_copied(folder, repeated):
    """A gigabyte of the same value, which the file holds once."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows, size = 2000, 500_000
    kind = pa.string() if repeated == "label" else pa.binary()
    value = pa.array(["x" * size], pa.string()).cast(kind)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), value)
    other = pa.array([f"{i:08}" for i in range(rows)], pa.string())
    if repeated == "label":
        table = pa.table({"image": other.cast(pa.binary()), "label": column})
    elif repeated == "image":
        table = pa.table({"image": column, "label": other})
    else:
        column = pa.StructArray.from_arrays([column, other], ["bytes", "path"])
        table = pa.table({"image": column, "label": other})
    with parquet.ParquetWriter(folder / "a.parquet", table.schema, store_schema=False) as out:
        out.write_table(table)
    found = attempt(lambda: find_raw_images(folder / "a.parquet"))
    assert len(found) == rows
    assert len(found.class_names) == (1 if repeated == "label" else rows)
    assert len(attempt(lambda: found.read(found.locations[-1]))) == (8, size)[repeated != "label"]


@pytest.mark.parametrize("label", [2**31 - 1, 2**40, 2**63, -1])
def test_labels_are_not_counted_up_to(folder, label):
    labels = np.asarray([0, 1, 2, label] * 10, np.uint64 if label == 2**63 else np.int64)
    np.savez(folder / "a.npz", images=np.zeros((40, 8, 8, 1), np.uint8), labels=labels)
    assert attempt(lambda: Npz(folder / "a.npz").open("train")) is None


HUGE = {
    "depth": 10**9,
    "hidden_size": 10**9,
    "image_size": 2**20,
    "num_classes": 10**12,
    "mlp_ratio": 10**9,
    "denoise_timesteps": 2**40,
    "channels": 2**30,
}


@pytest.mark.parametrize("name", HUGE)
def test_the_size_of_a_network_is_not_believed(folder, name):
    path = folder / "a.safetensors"
    save_safetensors(SMALL.build(key=jax.random.key(0)), path)
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    config = json.loads(header["__metadata__"]["config"])
    header["__metadata__"]["config"] = json.dumps({**config, name: HUGE[name]})
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + content[end:])
    assert attempt(lambda: load_safetensors(path)) is None
    save_config(TINY_RUN, folder / "config.json")
    document = json.loads((folder / "config.json").read_text())
    document["model"][name] = HUGE[name]
    (folder / "config.json").write_text(json.dumps(document))
    assert attempt(lambda: load_config(folder / "config.json")) is None


TEXT = b"\x80\x04X" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"q\0"
TUPLE = b"\x80\x04(" + b"N" * 2**14 + b"tq\0"
DICT = b"\x80\x04}(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(2**12)) + b"uq\0"
PICKLES = {
    "a text encoded": TEXT
    + b"c_codecs\nencode\nq\1("
    + b"h\1h\0X\6\0\0\0latin1\x86R" * 2**14
    + b"l.",
    "a name joined": TEXT + b"(" + b"h\0h\0\x93" * 2**14 + b"l.",
    "arguments copied": TUPLE + b"ca\nb\nq\1(" + b"h\1h\0R" * 2**14 + b"l.",
    "a mapping copied": DICT + b"ccollections\nOrderedDict\nq\1(" + b"h\1h\0\x85R" * 2**14 + b"l.",
    "a buffer of an integer": b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(\x8a\x06"
    + b"\1" * 6
    + b"cnumpy\ndtype\nX\2\0\0\0f4\x85RK\1\x85X\1\0\0\0CtR.",
    "tuples of tuples as a key": b"\x80\x02}N" + b"2\x86" * 40 + b"Ns.",
    "marks": b"(" * 2**16 + b"l" * 2**16 + b".",
}
"""Short files that ask for the same again and again."""


@pytest.mark.parametrize("name", PICKLES)
def test_a_short_pickle_does_not_make_long_work(folder, name):
    (folder / "a.pkl").write_bytes(PICKLES[name])
    attempt(lambda: unpickle(folder / "a.pkl"))


def test_mappings_that_share_each_other_are_not_unfolded(folder):
    tree: dict[str, Any] = {"a": np.zeros(1)}
    for _ in range(40):
        tree = {"x": tree, "y": tree}
    (folder / "a.pkl").write_bytes(pickle.dumps({"params": tree}))
    assert attempt(lambda: load_reference(folder / "a.pkl", REFERENCE)) is None


def test_a_network_of_nan_is_refused(folder):
    network = SMALL.build(key=jax.random.key(0))
    save_safetensors(jax.tree.map(lambda w: w * np.nan, network), folder / "a.safetensors")
    with pytest.raises(InputError, match="weights that are not finite"):
        load_safetensors(folder / "a.safetensors")


NAN, INF = float("nan"), float("inf")
OPTIONS = {
    "learning rate": lambda: OptimizerConfig(learning_rate=INF),
    "weight decay": lambda: OptimizerConfig(weight_decay=NAN),
    "clip": lambda: OptimizerConfig(clip_norm=INF),
    "guidance": lambda: odelt.SampleConfig(guidance=NAN),
    "guidance of 64 bits": lambda: odelt.SampleConfig(guidance=1e300),
    "guidances": lambda: odelt.sample(
        NETWORK, jnp.zeros((2, *NETWORK.shape)), guidance=np.array([1.0, NAN])
    ),
    "guidance by depth": lambda: odelt.SampleConfig(depth_guidance=-INF),
    "interval": lambda: odelt.SampleConfig(guidance_interval=(NAN, 1.0)),
    "depth": lambda: odelt.SampleConfig(depth=-1),
    "depth of no step": lambda: odelt.SampleConfig(depth=()),
    "depth of the guide": lambda: odelt.SampleConfig(guide_depth=-1),
    "one in none": lambda: DeepSupervision(Shortcut(every=0)),
    "tolerance": lambda: odelt.Adaptive(rtol=NAN),
    "infinite tolerance": lambda: odelt.Adaptive(atol=INF),
    "controller": lambda: odelt.Adaptive(pcoeff=NAN),
    "times": lambda: odelt.FixedSteps(times=(0.0, NAN, 1.0)),
    "steps": lambda: odelt.FixedSteps(steps=2**31),
    "objective's guidance": lambda: Shortcut(guidance=NAN),
    "dropout": lambda: Shortcut(class_dropout=-1.0),
    "steps of a solve": lambda: LiveReflow(steps=0),
    "weights": lambda: DeepSupervision(weights=(1.0, NAN)),
    "power": lambda: MeanFlow(power=INF),
    "tolerances": lambda: GridConfig(tolerances=(1e-3, NAN)),
    "guidances of a grid": lambda: GridConfig(guidance=(INF,)),
    "seed": lambda: TrainConfig(model=TINY, seed=-1),
    "large seed": lambda: GridConfig(seed=99_999_999_999),
    "training steps": lambda: TrainConfig(model=TINY, steps=2**31),
    "peak": lambda: dataclasses.replace(TINY_RUN, logging=LoggingConfig(peak_flops=NAN)),
    "trajectory": lambda: SampleRequest(trajectory=(0.0, NAN)),
    "budget": lambda: SampleRequest(budget_ms=NAN),
    "share": lambda: HeldOut(share=NAN),
    "failures": lambda: Folder(Path("a"), max_failures=NAN),
    "classifier": lambda: ClassifierConfig(weight_decay=NAN),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_no_numbers_are_refused(name):
    with pytest.raises(InputError):
        OPTIONS[name]()


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a command."""

    seed: int = 0


def test_the_command_line_refuses_what_is_no_number():
    with pytest.raises(InputError, match="seed must be an integer of at most"):
        cli.arguments(Options, ["--seed", "4294967296"])


@pytest.mark.parametrize("labels", [[3.7], [2**33], [NAN], [INF], [-(2**40)], np.array([2**33])])
def test_labels_that_would_become_others_are_refused(labels):
    with pytest.raises(InputError, match="labels must be whole numbers"):
        as_condition(NETWORK.condition_type, labels)


def test_messages_are_one_line_whatever_a_file_says():
    error = InputError("a\nb\x1b[31m\ud800" + "x" * 10_000)
    assert str(error).startswith("a\\nb\\x1b[31m\\ud800xxx")
    assert len(str(error)) < 1100
    assert reason(ValueError(f"bad {object()}")) == "bad object"
