"""What TensorFlow Datasets leaves on disk, where it wrote ArrayRecord; TensorFlow is not needed."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from odelt_eqx.data.folder import UNLABELLED, check_shape
from odelt_eqx.data.pictures import decode
from odelt_eqx.data.shards import Records
from odelt_eqx.data.source import Example, Source, Split, as_float
from odelt_eqx.data.splits import HeldOut, check_not_empty
from odelt_eqx.errors import InputError

HELD_OUT = ("validation", "test")
"""Splits that are held out, the first that is there."""


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A data set that TensorFlow Datasets wrote with `file_format="array_record"`.

    `tfds build DATASET --file_format=array_record` does; the folder is that of a version, such as
    `~/tensorflow_datasets/imagenet2012/5.1.0`. Its split `train` is trained on; `validation` or
    else `test` is held out.

    Args:
        folder: holds `dataset_info.json` and `NAME-train.array_record-00000-of-00001` and so on.
        size: height and width of the squares that training sees.
        channels: 3, or 1 for grey levels.
        image: the feature that is the picture.
        label: the feature that is its class; without it nothing is labelled.
        held_out: which examples are held out where the data have no other split than `train`; their
            names are their places.
    """

    folder: Path
    size: int
    channels: int = 3
    image: str = "image"
    label: str = "label"
    held_out: HeldOut = HeldOut()

    def __post_init__(self) -> None:
        """Check the shape."""
        check_shape(self.size, self.channels)

    def __str__(self) -> str:
        """Return what messages call it."""
        return str(self.folder)

    def open(self, split: Split) -> "TfdsSource":
        """Return a split.

        Raises:
            InputError: the folder is none of a data set in ArrayRecord, or the split is empty.
        """
        lengths = _lengths(self.folder)
        given = next((name for name in HELD_OUT if lengths.get(name)), None)
        name = given if given and split == "held-out" else "train"
        counts = lengths.get(name, [])
        files = {self._file(name, n, len(counts)): count for n, count in enumerate(counts) if count}
        places = np.arange(sum(counts))
        if not given:
            places = places[self.held_out.of(map(str, places), split)]
        check_not_empty(len(places), split, self)
        names = self.folder / f"{self.label}.labels.txt"
        class_names = tuple(names.read_text().split("\n")) if names.is_file() else UNLABELLED
        class_names = tuple(name for name in class_names if name)
        return TfdsSource(self, Records(self.folder, files), places, class_names)

    def _file(self, split: str, number: int, count: int) -> str:
        pattern = f"*-{split}.array_record-{number:05d}-of-{count:05d}"
        for path in self.folder.glob(pattern):
            return path.name
        raise InputError(
            f"{self.folder} has no file {pattern}; have TensorFlow Datasets write the data with "
            "--file_format=array_record"
        )


class TfdsSource(Source):
    """Encoded pictures in records of `tf.train.Example`."""

    levels = 256

    def __init__(
        self,
        data: Tfds,
        records: Records,
        places: np.ndarray,
        class_names: tuple[str, ...],
    ):
        """Read those of `records` that are at `places`."""
        self._data, self._records, self._places = data, records, places
        self.image_shape = (data.size, data.size, data.channels)
        self.class_names = class_names

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._places)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return example `index`.

        Raises:
            InputError: the record has not these features, or a picture that cannot be used.
        """
        place = int(self._places[index])
        try:
            features = parse_example(self._records[place])
            (encoded,) = features[self._data.image]
            pixels = decode(encoded, self._data.size, self._data.channels)
            (label,) = features.get(self._data.label, [0])
        except (DecodeError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"example {place} of {self._data} has no feature {self._data.image!r} that is a "
                f"picture: {error}"
            ) from None
        return {"image": as_float(pixels), "label": np.asarray(label, np.int32)}


def _lengths(folder: Path) -> dict[str, list[int]]:
    """Return the number of records in each shard of each split."""
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text())
        return {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is no version of a data set of TensorFlow Datasets: {error!r}"
        ) from None


@cache
def _example_type() -> Any:
    """Return the message `tf.train.Example`, as far as its wire format goes.

    Source: tensorflow/core/example/{example,feature}.proto.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="odelt_eqx/example.proto", package="odelt_eqx", syntax="proto3"
    )
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED

    def message(name: str, *fields: tuple) -> Any:
        made = file.message_type.add(name=name)
        for number, (called, label, kind) in enumerate(fields, start=1):
            own = {"type_name": f".odelt_eqx.{kind}"} if isinstance(kind, str) else {"type": kind}
            made.field.add(name=called, number=number, label=label, **own)
        return made

    message("Bytes", ("value", many, field.TYPE_BYTES))
    message("Floats", ("value", many, field.TYPE_FLOAT))
    message("Ints", ("value", many, field.TYPE_INT64))
    message("Feature", ("bytes", one, "Bytes"), ("floats", one, "Floats"), ("ints", one, "Ints"))
    message("Entry", ("key", one, field.TYPE_STRING), ("value", one, "Feature"))
    message("Features", ("entry", many, "Entry"))  # what a map is on the wire
    message("Example", ("features", one, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("odelt_eqx.Example"))


def parse_example(record: bytes) -> dict[str, list]:
    """Return the features of a serialised `tf.train.Example` by name, each a list of values.

    Raises:
        DecodeError: it is none.
    """
    features = {}
    for entry in _example_type().FromString(record).features.entry:
        feature = entry.value
        kinds = (feature.bytes, feature.floats, feature.ints)
        features[entry.key] = [value for kind in kinds for value in kind.value]
    return features
