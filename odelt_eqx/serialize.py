"""Typed values to and from what JSON can hold; only the types asked for can come out.

No value is converted: 3.7 and "7" are no integers.
"""

import dataclasses
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import cattrs
from cattrs.gen import make_dict_structure_fn
from cattrs.strategies import configure_union_passthrough
from cattrs.v import format_exception

from odelt_eqx.errors import InputError
from odelt_eqx.images import ImageSize

TAG = "type"
"""Key under which a member of a union carries the name of its class."""


def to_dict(value: Any, kind: Any = None) -> Any:
    """Return dataclasses, containers, paths and plain values as JSON can hold them.

    `kind` is the declared type, where it is a union of dataclasses.
    """
    return _CONVERTER.unstructure(value, kind)


def from_dict(data: Any, kind: Any, what: str) -> Any:
    """Return the value that `to_dict` returned as JSON.

    Raises:
        InputError: the data do not describe such a value; unknown fields are errors, too, unless
            they are null: options that an older version had, and that were not used.
    """
    try:
        return _CONVERTER.structure(data, kind)
    except InputError as error:
        problem = str(error)
    except cattrs.BaseValidationError as error:
        problem = "; ".join(cattrs.transform_error(error, format_exception=_explain))
    except Exception as error:  # a value of the wrong type breaks any step
        problem = f"{type(error).__name__}: {error}"
    problem = " ".join(problem[:1000].split())[:300]
    raise InputError(f"{what} does not fit this version: {problem}")


def _explain(error: BaseException, kind: Any) -> str:
    """Return what is wrong with a value: what its own checks say, or else what cattrs does."""
    return str(error) if isinstance(error, InputError) else format_exception(error, kind)


def _members(kind: Any) -> dict[str, type]:
    """Return the dataclasses in a union by name; none if it is another type."""
    if get_origin(kind) not in (Union, types.UnionType):
        return {}
    classes = [cls for cls in get_args(kind) if cls is not type(None)]
    if len(classes) < 2 or not all(map(dataclasses.is_dataclass, classes)):
        return {}
    return {cls.__name__: cls for cls in classes}


def _structure_union(kind: Any) -> Any:
    members, optional = _members(kind), type(None) in get_args(kind)

    def structure(data: dict[str, Any] | None, _: Any) -> Any:
        if data is None and optional:
            return None
        fields = dict(data or {})
        name = fields.pop(TAG, None)
        if name not in members:
            raise InputError(f"{TAG} must be one of {', '.join(members)}; got {name!r}")
        return _CONVERTER.structure(fields, members[name])

    return structure


def _unstructure_union(kind: Any) -> Any:
    members = _members(kind)

    def unstructure(value: Any) -> Any:
        if value is None:
            return None
        name = type(value).__name__
        return {TAG: name, **_CONVERTER.unstructure(value, members[name])}

    return unstructure


def _structure_size(data: Any, _: Any) -> ImageSize:
    """Return a size that is one number or two."""
    return _CONVERTER.structure(data, int if isinstance(data, int) else tuple[int, int])


def _structure_tuple(kind: Any) -> Any:
    kinds = get_args(kind)

    def structure(data: Any, _: Any) -> Any:
        if not isinstance(data, list | tuple):
            raise InputError(f"expected a list; got {_shown(data)}")
        each = kinds[:1] * len(data) if kinds[-1] is Ellipsis else kinds
        if len(each) != len(data):
            raise InputError(f"expected {len(each)} values; got {len(data)}")
        pairs = zip(data, each, strict=True)
        return tuple(_CONVERTER.structure(item, kind) for item, kind in pairs)

    return structure


def _structure_plain(data: Any, kind: Any) -> Any:
    """Return a number, a string or a path; of integers, those of 64 bits."""
    given = {float: (int, float), Path: str}.get(kind, kind)
    known = isinstance(data, given) and (kind is bool or not isinstance(data, bool))
    if not known or (isinstance(data, int) and abs(data) >= 2**63):
        raise InputError(f"expected {NAMES[kind]}; got {_shown(data)}")
    return kind(data)


def _shown(data: Any) -> str:
    """Return a value as text if it is a short one, or else its type."""
    short = isinstance(data, float | str | bool | None) or (
        isinstance(data, int) and abs(data) < 2**63
    )
    return repr(data)[:40] if short else f"a {type(data).__name__}"


def _structure_dataclass(kind: Any) -> Any:
    structure = make_dict_structure_fn(kind, _CONVERTER, _cattrs_forbid_extra_keys=True)
    names = {field.name for field in dataclasses.fields(kind)}

    def without_dropped(data: Any, kind: Any) -> Any:
        if isinstance(data, dict):
            data = {name: v for name, v in data.items() if v is not None or name in names}
        return structure(data, kind)

    return without_dropped


NAMES: dict[Any, str] = {
    **{bool: "true or false", int: "an integer", float: "a number", str: "a text"},
    Path: "a path",
}
"""The types that are no containers, in words."""

_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_structure_hook_factory(dataclasses.is_dataclass, _structure_dataclass)
_CONVERTER.register_structure_hook_factory(lambda kind: get_origin(kind) is tuple, _structure_tuple)
for _kind in NAMES:
    _CONVERTER.register_structure_hook(_kind, _structure_plain)
configure_union_passthrough(bool | int | float | str | None, _CONVERTER)
_CONVERTER.register_structure_hook(ImageSize, _structure_size)
_CONVERTER.register_structure_hook(
    ImageSize | None, lambda data, kind: None if data is None else _structure_size(data, kind)
)
_CONVERTER.register_structure_hook_factory(lambda kind: bool(_members(kind)), _structure_union)
_CONVERTER.register_unstructure_hook_factory(lambda kind: bool(_members(kind)), _unstructure_union)
