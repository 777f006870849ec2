"""Classes and splits as people write them down: numbers, names, folders, files of labels."""

import csv
import io
import posixpath
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import parse_json, reading

UNLABELLED = ("all",)
"""Class names of data without classes."""
SPARSE = 10
"""Numbers that reach so many times their count are not those of classes, numbered from 0."""
SPLITS = re.compile(r"(train|val|dev|test|eval)(?:ing|id|idation|uation)?(?![a-z])", re.IGNORECASE)
"""How the name of a folder or file says that it is a split, as Hugging Face's `datasets` has it."""
ALIASES = {"dev": "val", "eval": "test"}
SPLIT = "split"
"""A column of tables that says the split of an image; it is not read, but noted."""
DELIMITERS = ",;\t"
"""Those of `metadata.csv`; a spreadsheet writes semicolons where a comma is the decimal point."""

Labels = Int[np.ndarray, " count"]


def number_names(names: Sequence[str]) -> tuple[tuple[str, ...], Labels]:
    """Return the distinct class names and the label of each item; numbers are in their order.

    Names are in Unicode's normal form C: macOS may decompose what other systems compose.
    """
    names = [unicodedata.normalize("NFC", name) for name in names]
    distinct = set(names)
    numeric = all(re.fullmatch(r"[0-9]{1,18}", name) for name in distinct)
    ordered = sorted(distinct, key=lambda name: (int(name) if numeric else 0, name))
    labels = {name: label for label, name in enumerate(ordered)}
    return tuple(ordered), np.asarray([labels[name] for name in names], np.int32)


def number_ids(
    ids: np.ndarray,
    what: object,
    class_names: Sequence[str] = (),
    renumber: bool = False,
    known: np.ndarray | None = None,
) -> tuple[tuple[str, ...], Labels]:
    """Return the class names and the labels of items whose classes are integers.

    Args:
        ids: class of each item.
        what: the file that they come from.
        class_names: by label; the integers themselves by default.
        renumber: number the integers that occur from 0 on, in their order.
        known: the integers of the training data, which decide what the classes are; `ids` by
            default.

    Raises:
        InputError: a label is that of no class.
    """
    ids = ids.astype(np.int64)
    values = np.unique(ids if known is None else known.astype(np.int64))
    count, offer = len(class_names), ""
    if renumber:
        count = count or len(values)
        if count != len(values):
            raise InputError(f"{what} has {len(values)} classes and {count} class names")
        names = class_names or values
        labels, wrong = np.searchsorted(values, ids), ~np.isin(ids, values)
    else:
        highest = int(values.max(initial=-1))
        offer = "; renumber gives the numbers that occur classes from 0 on"
        if not count and highest >= max(100, SPARSE * len(values)):
            raise InputError(
                f"{what} has the label {highest}, but only {len(values)} different ones{offer}"
            )
        count = count or highest + 1
        names, labels, wrong = class_names or range(count), ids, (ids < 0) | (ids >= count)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InputError(
            f"{what} has the label {ids[place]} (item {place}), which is none of its {count} "
            f"classes{'' if renumber else f', 0 to {count - 1}'}{offer}"
        )
    return tuple(map(str, names)), labels.astype(np.int32)


def number_values(
    values: Sequence[Any], what: object, class_names: Sequence[str] = (), renumber: bool = False
) -> tuple[tuple[str, ...], Labels]:
    """Return the class names and the labels of items whose classes are integers or names.

    Raises:
        InputError: an item has neither.
    """
    if "" in values:
        raise InputError(f"{what} has an empty name of a class (item {values.index('')})")
    for kind in (str, int):
        if all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            if kind is str:
                return number_names(values)
            if max(map(abs, values), default=0) >= 2**63:
                raise InputError(f"{what} has the label {max(values, key=abs)}, which is no class")
            return number_ids(np.asarray(values, np.int64), what, class_names, renumber)
    first = str if isinstance(values[0], str) else int
    wrong = next((value for value in values if not isinstance(value, first)), values[0])
    shown = repr(wrong)[:100]
    raise InputError(f"{what} has items whose class is neither a number nor a name, like {shown}")


def split_names(parts: Sequence[str]) -> list[str] | None:
    """Return the split that each folder or file name says, "train", "val" or "test".

    "dev" is "val", "eval" is "test". None unless all say one, and one of them is "train".

    Raises:
        InputError: some are splits, "train" and another, and some are not.
    """
    found = {part: SPLITS.match(part) for part in set(parts)}
    if not all(found.values()):
        _check_no_splits(found)
        return None
    names = [_split(match) for part in parts if (match := found[part])]
    return names if "train" in names and len(set(names)) > 1 else None


def _split(match: re.Match[str]) -> str:
    """Return the split that a name says: "train", "val" or "test"."""
    return ALIASES.get(name := match[1].lower(), name)


def _check_no_splits(found: Mapping[str, re.Match[str] | None]) -> None:
    """Raise an InputError if some names are those of splits, "train" and another.

    Names of splits go on alike, up to numbers, like `train_images` and `test_images`;
    `train_station` and `test_tube` are classes.
    """
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for part, match in sorted(found.items()):
        if match:
            splits[re.sub("[0-9]+", "", part[match.end() :])][_split(match)] = part
    for alike in splits.values():
        if "train" in alike and len(alike) > 1:
            others = sorted(part or "files in no folder" for part in found if not found[part])
            more = f" and {len(others) - 3:,} more" if others[3:] else ""
            raise InputError(
                f"{' and '.join(alike.values())} are splits, unlike {', '.join(others[:3])}{more} "
                "beside them: move those elsewhere, or into folders called train, val or test"
            )


def held_out_items(splits: Sequence[str], what: object) -> dict[int, bool]:
    """Return the items that are used, by index, and whether they are held out.

    A split for validation is held out, or else one for testing, which is otherwise not used.
    """
    held_out = "val" if "val" in splits else "test"
    if "test" in splits and held_out == "val":
        warnings.warn(
            f"{what}: what is for validation is held out, what is for testing is not used",
            stacklevel=2,
        )
    used = {"train": False, held_out: True}
    return {index: used[name] for index, name in enumerate(splits) if name in used}


def labels_in_files(
    path: Path,
    members: Mapping[str, Any],
    read: Callable[[Any], bytes],
    names: Sequence[str],
    column: str,
) -> list[Any] | None:
    """Return the class of each image as files beside the images say; None if there are none.

    | read | made by |
    |---|---|
    | `dataset.json`: `{"labels": [[name, class], ...]}` | EDM2, StyleGAN |
    | `metadata.csv`, `metadata.jsonl`: `file_name` and a column of classes | Hugging Face |
    | `NAME.cls`, or `NAME.json` with a key of that name, beside the image | WebDataset |

    A file may begin with a byte order mark, and a CSV have any of the `DELIMITERS`, with spaces.
    Names of images are paths from its folder on; `./`, backslashes and Unicode's normal form make
    no difference. NAME is that of the image without its suffix or, as in WebDataset, up to a dot.

    Args:
        path: the folder or archive, for messages.
        members: all files in it, by name with their location.
        read: returns the bytes at a location.
        names: the images among them.
        column: the column or key that holds the class.

    Raises:
        InputError: such a file is damaged, lacks an image or its class, or says two classes of one.
    """
    tables = {"dataset.json": _read_dataset_json, "metadata.csv": _read_csv}
    tables |= {"metadata.jsonl": _read_json_lines}
    found: dict[str, Any] = {}

    def read_member(member: str) -> bytes:
        try:
            return read(members[member])
        except Exception as error:  # a damaged archive raises anything
            raise InputError(f"{path}/{member} cannot be read: {reason(error)}") from None

    for name, parse in tables.items():
        for member in sorted(m for m in members if m.rsplit("/", 1)[-1] == name):
            folder, where = member[: -len(name)], f"{path}/{member}"
            text = read_member(member)
            with reading(where, "a file of labels"):
                labels = parse(text.decode("utf-8-sig"), column, where)
            for image, label in labels:
                known = found.get(folder + image, label)
                if known != label and str(known) != str(label):  # all values in a CSV are texts
                    raise InputError(
                        f"{where} says that {image} is of the class {label!r}, and it or another "
                        f"file that it is of {known!r}: leave one of them"
                    )
                found[folder + image] = label
    if not found:
        found = _read_beside(path, members, read_member, names, column)
    if not found:
        return None
    labels = {_normalise(name): label for name, label in found.items()} | found
    keys = {name: name if name in labels else _normalise(name) for name in names}
    if missing := [name for name, key in keys.items() if key not in labels]:
        raise InputError(
            f"{path} has files of labels that lack {len(missing)} of its images: {missing[0]}"
        )
    if empty := [name for name, key in keys.items() if labels[key] in (None, "")]:
        raise InputError(
            f"{path} has files of labels without a class for {len(empty)} of its images: {empty[0]}"
        )
    return [labels[keys[name]] for name in names]


def _normalise(name: str) -> str:
    """Return what is alike for all ways to write the path of a file."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def _read_dataset_json(text: str, column: str, where: str) -> list[tuple[str, Any]]:
    del column, where
    content = parse_json(text)
    if not (isinstance(content, dict) and "labels" in content):
        raise ValueError('expected {"labels": [[name, class], ...]}')
    return [(str(name), label) for name, label in content["labels"] or ()]


def _read_csv(text: str, column: str, where: str) -> list[tuple[str, Any]]:
    delimiter = max(DELIMITERS, key=text.split("\n", 1)[0].count)
    table = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    table.fieldnames = [name.strip() for name in table.fieldnames or ()]
    if table.fieldnames.count(column) > 1:
        raise ValueError(f"it has {table.fieldnames.count(column)} columns {column!r}")
    rows = [row for row in table if any(row.values())]  # spreadsheets end with empty ones
    for number, row in enumerate(rows, 1):
        if any(row.pop(None, ())) and "file_name" in row:
            raise ValueError(
                f"row {number} is longer than the header; quote what has {delimiter!r}"
            )
    strip = lambda value: value and value.strip()
    return _choose([{k: strip(v) for k, v in row.items()} for row in rows], column, where)


def _read_json_lines(text: str, column: str, where: str) -> list[tuple[str, Any]]:
    rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected an object on each line, with the key file_name")
    return _choose(rows, column, where)


def _choose(rows: Sequence[dict[str, Any]], column: str, where: str) -> list[tuple[str, Any]]:
    """Return names of files and their classes; nothing, with a note, without either column.

    Raises:
        ValueError: there are no rows, or one has a class and names no file.
    """
    if not rows:
        raise ValueError("it has no rows")
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name]
    if "file_name" not in columns:
        lacks = f"has no column file_name; it has {', '.join(columns)}"
        if column in columns:
            raise ValueError(f"it {lacks}")
        warnings.warn(f"{where} is not read for classes: it {lacks}", stacklevel=2)
        return []
    for number, row in enumerate(rows, 1):
        if not (isinstance(row.get("file_name"), str) and row["file_name"]):
            raise ValueError(f"row {number} has no file_name")
    note_splits(where, {str(row.get(SPLIT)) for row in rows})
    if column not in columns:
        if others := [name for name in columns if name != "file_name"]:
            note_columns(where, column, others)
        return []
    return [(row["file_name"], row.get(column)) for row in rows]


def note_columns(where: object, column: str, others: Sequence[str]) -> None:
    """Warn that a table has no column of classes but others, which may be chosen."""
    warnings.warn(
        f"{where} has no column {column!r} of classes; it has {', '.join(others)}: choose one by "
        "the option label",
        stacklevel=2,
    )


def note_splits(where: object, values: Collection[str]) -> None:
    """Warn that a table has a column of splits, which is not read."""
    found = {_split(match) for value in set(values) if (match := SPLITS.match(value))}
    if "train" in found and len(found) > 1:
        warnings.warn(
            f"{where} has a column {SPLIT!r}, which is not read: only folders and files called "
            "train, val or test are splits",
            stacklevel=2,
        )


def _read_beside(
    path: Path,
    members: Collection[str],
    read: Callable[[str], bytes],
    names: Sequence[str],
    column: str,
) -> dict[str, Any]:
    """Return the classes in files that share the name of an image but for the suffix."""
    found: dict[str, Any] = {}
    for name in names:
        folder, file = posixpath.split(name)
        stems = name.rsplit(".", 1)[0], posixpath.join(folder, file.partition(".")[0])
        beside = (f"{stem}{suffix}" for suffix in (".cls", ".json") for stem in stems)
        member = next((each for each in beside if each in members), "")
        if member.endswith(".cls"):
            text = read(member).decode("utf-8-sig", errors="replace").strip()
            found[name] = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
        elif member:
            try:
                content = parse_json(read(member))
            except ValueError as error:
                raise InputError(f"{path}/{member} is not JSON: {reason(error)}") from None
            if isinstance(content, dict) and column in content:
                found[name] = content[column]
    return found
