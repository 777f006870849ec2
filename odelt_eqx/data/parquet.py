"""Images in the columns of Parquet files, as Hugging Face's `datasets` writes them."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from odelt_eqx.array_files import check_unpacked
from odelt_eqx.data.items import RawItems, check_held_out, check_size
from odelt_eqx.data.labels import (
    SPLIT,
    UNLABELLED,
    held_out_items,
    note_columns,
    note_splits,
    number_values,
    split_names,
)
from odelt_eqx.errors import InputError, reason
from odelt_eqx.files import parse_json


def find_in_parquet(
    path: Path, files: list[Path], image: str, label: str, renumber: bool
) -> RawItems:
    """Return the images in Parquet files of a folder, or in a file; see `find_raw_images`."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "Parquet files need pyarrow: pip install 'odelt-eqx[parquet]', or pip install pyarrow"
        ) from None
    _read_row_group.cache_clear()  # the files may be others than when they were last read
    relative = [file.name if file == path else file.relative_to(path).as_posix() for file in files]
    splits = _splits_of_files(relative, path)
    names, locations, values, held_out, class_names, marks = [], [], [], [], (), set()
    for file, name in zip(files, relative, strict=True):
        if splits is not None and name not in splits:
            continue
        try:
            table = pq.ParquetFile(file)
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) > file.stat().st_size:
                raise OSError(f"it claims {sum(groups):,} rows, more than it has bytes")
            column = _image_column(table.schema_arrow, image, file)
            columns = table.schema_arrow.names
            for group in range(len(groups)):
                _check_column(file, table.metadata, column, [group])
            if label in columns:
                values += _read_labels(file, label, table.schema_arrow.field(label).type)
                own = _huggingface_names(table.schema_arrow.metadata, label)
                if own and class_names and own != class_names:
                    raise InputError(f"{file} names other classes than the files before it")
                class_names = class_names or own
            else:
                others = [other for other in columns if not f"{column}.".startswith(f"{other}.")]
                if others:
                    note_columns(path, label, others)
            if (
                splits is None
                and SPLIT in columns
                and _is_text(table.schema_arrow.field(SPLIT).type)
            ):
                marks |= set(map(str, _read_column(file, SPLIT).to_pylist()))
        except InputError:
            raise
        except Exception as error:  # a damaged file raises anything
            raise InputError(f"{file} cannot be read: {reason(error)}") from None
        rows = [
            (str(file), column, group, row) for group, n in enumerate(groups) for row in range(n)
        ]
        names += [f"{name}#{row}" for row in range(len(rows))]
        locations += rows
        held_out += [splits is not None and splits[name]] * len(rows)
    if not names:
        raise InputError(f"{path} has no rows")
    note_splits(path, marks)
    labels = np.zeros(len(names), np.int32)
    if values:
        if len(values) != len(names) or None in values:
            raise InputError(
                f"some rows of {path} have no class; name another column by the option label"
            )
        class_names, labels = number_values(values, path, class_names, renumber)
    parts = None if splits is None else np.asarray(held_out)
    class_names = class_names or UNLABELLED
    check_held_out(path, class_names, labels, parts)
    return RawItems(path, names, labels, class_names, locations, _read_parquet, parts)


def _splits_of_files(names: Sequence[str], what: Path) -> dict[str, bool] | None:
    """Return the files that are used, and whether each is held out; None if none names a split."""
    for part in (0, -1):  # the first folder, or the file itself
        splits = split_names([name.split("/")[part] for name in names])
        if splits is not None:
            return {names[index]: out for index, out in held_out_items(splits, what).items()}
    return None


def _image_column(schema: Any, image: str, file: Path) -> str:
    """Return the column of images: `image`, or the only one of bytes or of a struct with bytes.

    Of a struct only the bytes are read: beside them may be lists, which unpack to any length.
    """
    from pyarrow import types

    found = {}
    for field in schema:
        kind, path = field.type, field.name
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind, path = kind.field("bytes").type, f"{path}.bytes"
        if types.is_dictionary(kind):
            kind = kind.value_type
        if re.fullmatch("(large_)?binary(_view)?", str(kind)):
            found[field.name] = path
    if image in found:
        return found[image]
    if image in schema.names:
        raise InputError(
            f"{file} has a column {image!r} of {schema.field(image).type}, not of bytes; name "
            "another by the option image"
        )
    if len(found) != 1:
        raise InputError(
            f"{file} has no column {image!r}; it has {', '.join(schema.names)}: name one by the "
            "option image"
        )
    return next(iter(found.values()))


def _read_labels(file: Path, label: str, kind: Any) -> list[Any]:
    """Return a column of classes.

    Raises:
        InputError: it holds neither whole numbers nor names.
    """
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    named = _is_text(kind)
    if not (named or types.is_integer(kind) or types.is_null(kind)):
        raise InputError(
            f"{file} has items whose class is neither a number nor a name: the column {label!r} "
            f"holds {kind}"
        )
    values: list[Any] = []
    for chunk in _read_column(file, label).chunks:
        if named:
            names = [*chunk.dictionary.to_pylist(), None]
            values += [names[index] for index in chunk.indices.fill_null(-1).to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _huggingface_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's `datasets` writes to the schema."""
    try:
        info = parse_json((metadata or {})[b"huggingface"])["info"]
        names = info["features"][label]["names"]
    except (KeyError, ValueError, TypeError):
        return ()
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if known else ()


def _read_parquet(location: tuple[str, str, int, int]) -> bytes:
    file, column, group, row = location
    value = _read_row_group(file, column, group)[row].as_py()
    value = (value.get("bytes") if isinstance(value, dict) else value) or b""
    check_size(len(value))
    return value


@lru_cache(maxsize=1)
def _read_row_group(file: str, column: str, group: int) -> Any:
    return _read_column(Path(file), column, group)


def _read_column(file: Path, name: str, group: int | None = None) -> Any:
    """Return a column of a row group, or of all; what a small file repeats often is held once.

    Raises:
        ValueError: it would unpack to far more than its own size.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    groups = range(metadata.num_row_groups) if group is None else [group]
    _check_column(file, metadata, name, groups)
    index = _column_index(metadata, name)
    repeated = [name] if metadata.schema.column(index).physical_type == "BYTE_ARRAY" else None
    table = pq.ParquetFile(file, metadata=metadata, read_dictionary=repeated)
    return table.read_row_groups(groups, [name]).column(0)


def _check_column(file: Path, metadata: Any, name: str, groups: Iterable[int]) -> None:
    """Raise a ValueError if a column of row groups would unpack to far more than its own size."""
    index = _column_index(metadata, name)
    chunks = [metadata.row_group(group).column(index) for group in groups]
    packed = min(sum(chunk.total_compressed_size for chunk in chunks), file.stat().st_size)
    check_unpacked(sum(chunk.total_uncompressed_size for chunk in chunks), packed)


def _column_index(metadata: Any, name: str) -> int:
    """Return the place of a column, or of a field of a struct, among those that a file stores."""
    return [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(name)
