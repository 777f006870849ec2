"""Small data sets on disk, in the formats that are read."""

import gzip

import numpy as np
from PIL import Image

from odelt_eqx.data.records import INDEX, Index, Layout, write_shard
from odelt_eqx.files import write_json
from odelt_eqx.serialize import to_dict


def write_idx(path, values):
    """Write bytes as IDX, compressed if the name says so."""
    values = np.asarray(values, np.uint8)
    head = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">u4").tobytes()
    data = head + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_fashion(folder, train=64, held_out=32, suffix=".gz"):
    """Write the four files of a small Fashion-MNIST: a bright square, whose place is the class."""
    folder.mkdir(exist_ok=True)
    for part, count in (("train", train), ("t10k", held_out)):
        labels = np.arange(count) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 4:20] = 100 + 15 * label
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return folder


def write_images(folder, classes=("cats", "dogs"), count=6, size=(12, 8)):
    """Write PNG files in one folder per class; each image has a grey level of its own."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            grey = 40 * label + 5 * number
            Image.new("RGB", size, (grey, grey, grey)).save(folder / name / f"{number}.png")
    return folder


def write_shards(folder, kind, values, labels):
    """Write arrays as a folder of two shards, the last two items held out."""
    folder.mkdir(exist_ok=True)
    layout = Layout(kind, str(values.dtype), values.shape[1:])
    middle = (len(values) - 2) // 2
    parts = {
        "train": {"train-00000.array_record": (0, middle)},
        "held-out": {"held-out-00000.array_record": (len(values) - 2, len(values))},
    }
    parts["train"]["train-00001.array_record"] = (middle, len(values) - 2)
    for files in parts.values():
        for name, (first, last) in files.items():
            with write_shard(folder / name) as write:
                for i in range(first, last):
                    write(layout.pack(int(labels[i]), values[i], f"item {i}".encode()))
    shards = {s: {n: b - a for n, (a, b) in files.items()} for s, files in parts.items()}
    counts = {"train": (len(values) - 2,), "held-out": (2,)}
    names = tuple(map(str, range(int(max(labels)) + 1)))
    write_json(folder / INDEX, to_dict(Index(layout, names, shards, counts, None, 0)))
    return folder
