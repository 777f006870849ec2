"""Data sets that TensorFlow Datasets wrote as ArrayRecord, read without TensorFlow."""

import dataclasses
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from jaxtyping import UInt8

from odelt_eqx.data.decode import WHITES, check_shape, decode_image
from odelt_eqx.data.labels import UNLABELLED
from odelt_eqx.data.records import Records
from odelt_eqx.data.source import DataSet, ImageSource, Split
from odelt_eqx.data.splits import HeldOut
from odelt_eqx.errors import InputError, check_range, reason
from odelt_eqx.files import read_json, read_text, reading
from odelt_eqx.images import ImageSize, height_width
from odelt_eqx.serialize import set_declared

MAX_CLASSES = 1_000_000
HELD_OUT = ("validation", "test")
"""Names of held-out splits; the first that exists is taken."""

MESSAGES = {
    "Bytes": {"value": "repeated bytes"},
    "Floats": {"value": "repeated float"},
    "Ints": {"value": "repeated int64"},
    "Feature": {"bytes": "optional Bytes", "floats": "optional Floats", "ints": "optional Ints"},
    "Entry": {"key": "optional string", "value": "optional Feature"},
    "Features": {"feature": "repeated Entry"},  # the wire format of a map
    "Example": {"features": "optional Features"},
}
"""The messages of tensorflow/core/example/{example,feature}.proto; fields are numbered from 1."""


@dataclasses.dataclass(frozen=True)
class Tfds(DataSet):
    """A data set that TensorFlow Datasets wrote with `file_format="array_record"`.

    `tfds build DATASET --file_format=array_record` does; the folder is that of a version, such as
    `~/tensorflow_datasets/imagenet2012/5.1.0`. Its split `train` is trained on; `validation` or
    else `test` is held out.

    Args:
        folder: holds `dataset_info.json` and `NAME-train.array_record-00000-of-00001` and so on.
        size: (height, width) of the images, in pixels, or one number for both; they are cropped to
            this shape.
        channels: 3, or 1 for grey levels.
        image: the feature that is the image.
        label: the feature that is its class; without it there are no classes.
        white: brightest value of images of more than 8 bits.
        held_out: which examples are held out if `train` is the only split; their names are their
            indices.
    """

    folder: Path
    size: ImageSize
    channels: int = 3
    image: str = "image"
    label: str = "label"
    white: int = WHITES[-1]
    held_out: HeldOut = HeldOut()

    def __post_init__(self) -> None:
        set_declared(self)
        check_shape(self.size, self.channels)
        check_range(self, "white", least=1)

    def _open(self, split: Split) -> ImageSource:
        lengths = _shard_lengths(self.folder)
        held_out = next((name for name in HELD_OUT if lengths.get(name)), None)
        name = held_out if held_out and split == "held-out" else "train"
        counts = lengths.get(name, [])
        paths = sorted(self.folder.glob(f"*-{name}.array_record-*-of-{len(counts):05d}"))
        if len(paths) != len(counts):
            raise InputError(
                f"{self.folder} has {len(paths)} of {len(counts)} files *-{name}.array_record-*; "
                "have TensorFlow Datasets write the data with --file_format=array_record"
            )
        files = {path.name: count for path, count in zip(paths, counts, strict=True) if count}
        records = Records(self.folder, files)
        indices = np.arange(len(records))
        if not held_out:
            indices = indices[self.held_out.select(map(str, indices), split)]
        names = self._class_names()
        read = partial(self._read, records, indices, len(names))
        shape = (*height_width(self.size), self.channels)
        return ImageSource(read, len(indices), shape, names, (*files.items(), indices))

    def _class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, or their numbers where they have no names."""
        path = self.folder / f"{self.label}.labels.txt"
        if path.is_file():
            return tuple(read_text(path, "a list of class names").strip().split("\n"))
        path = self.folder / "features.json"
        if not path.is_file():
            return UNLABELLED
        features = read_json(path, "a description of features")
        with reading(path, "a description of features"):
            feature = features["featuresDict"]["features"].get(self.label, {})
            count = int(feature["classLabel"]["numClasses"]) if "classLabel" in feature else 0
        if not 0 <= count <= MAX_CLASSES:
            raise InputError(f"{path} says that there are {count} classes; at most {MAX_CLASSES:,}")
        return tuple(map(str, range(count))) or UNLABELLED

    def _read(
        self, records: Records, indices: np.ndarray, classes: int, index: int
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Return the pixels and the label of an image."""
        record = int(indices[index])
        try:
            features = parse_example(records[record])
            (encoded,) = features[self.image]
            pixels = decode_image(encoded, self.size, self.channels, self.white)
        except (DecodeError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"example {record} of {self} has no feature {self.image!r} that is an image: "
                f"{reason(error)}"
            ) from None
        labels = features.get(self.label, [0])
        label = labels[0] if len(labels) == 1 else labels
        if not isinstance(label, int) or not 0 <= label < classes:
            raise InputError(
                f"example {record} of {self} has the label {label!r:.100}, which is none of its "
                f"{classes} classes, integers from 0; {self.label}.labels.txt names them, one a "
                "line"
            )
        return pixels, label


def _shard_lengths(folder: Path) -> dict[str, list[int]]:
    """Return the number of records in each shard of each split."""
    what = "from a version of a data set of TensorFlow Datasets"
    info = read_json(path := folder / "dataset_info.json", what)
    with reading(path, what):
        return {str(s["name"]): [int(n) for n in s["shardLengths"]] for s in info["splits"]}


@cache
def _example_type() -> Any:
    """Return the message type `tf.train.Example`."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, declaration) in enumerate(fields.items(), start=1):
            label, kind = declaration.split()
            made = message.field.add(name=field, number=number)
            made.label = made.Label.Value(f"LABEL_{label.upper()}")
            if kind in MESSAGES:
                made.type_name = f".tf.{kind}"
            else:
                made.type = made.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def parse_example(record: bytes) -> dict[str, list]:
    """Return the features of a serialised `tf.train.Example` by name, each a list of values.

    Raises:
        DecodeError: the record is not one.
    """
    features = {}
    for entry in _example_type().FromString(record).features.feature:
        lists = (entry.value.bytes, entry.value.floats, entry.value.ints)
        features[entry.key] = [value for values in lists for value in values.value]
    return features
