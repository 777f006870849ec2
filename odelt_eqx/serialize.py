"""Typed values to and from what JSON can hold; only the types asked for can come out."""

import dataclasses
import types
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
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    problem = " ".join(problem.split())[:300]
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


def _structure_dataclass(kind: Any) -> Any:
    structure = make_dict_structure_fn(kind, _CONVERTER, _cattrs_forbid_extra_keys=True)
    names = {field.name for field in dataclasses.fields(kind)}

    def without_dropped(data: Any, kind: Any) -> Any:
        if isinstance(data, dict):
            data = {name: v for name, v in data.items() if v is not None or name in names}
        return structure(data, kind)

    return without_dropped


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_structure_hook_factory(dataclasses.is_dataclass, _structure_dataclass)
configure_union_passthrough(bool | int | float | str | None, _CONVERTER)
_CONVERTER.register_structure_hook(ImageSize, _structure_size)
_CONVERTER.register_structure_hook(
    ImageSize | None, lambda data, kind: None if data is None else _structure_size(data, kind)
)
_CONVERTER.register_structure_hook_factory(lambda kind: bool(_members(kind)), _structure_union)
_CONVERTER.register_unstructure_hook_factory(lambda kind: bool(_members(kind)), _unstructure_union)
