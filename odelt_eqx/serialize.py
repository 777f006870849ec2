"""Values of declared types: to and from what JSON can hold, and as a config is given them.

Only the types asked for can come out. No value is converted: 3.7 and "7" are no integers.
"""

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, is_typeddict

import cattrs
from cattrs.gen import make_dict_structure_fn
from cattrs.strategies import configure_union_passthrough
from cattrs.v import format_exception

from odelt_eqx.errors import InputError, declared_types

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


def set_declared(owner: Any) -> None:
    """Set the fields of a frozen dataclass as values of the types that it declares.

    Whole numbers, numbers and truth values of NumPy and JAX become Python's, lists and arrays
    tuples: so the dataclass can be hashed, compared and written as JSON.

    Raises:
        InputError: a value is of another type, or none of the names that a Literal has.
    """
    for name, kind in declared_types(owner).items():
        value = getattr(owner, name)
        members = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
        plain = {bool, int, float, str, Any}
        classes = set(filter(_is_class, members)) - plain
        if isinstance(value, tuple(classes)):
            continue
        try:
            declared = _CONVERTER.structure(as_python(value), kind)
        except cattrs.StructureHandlerNotFoundError:  # a function, or what else no file can hold
            continue
        except Exception:  # a value of the wrong type breaks any step
            raise InputError(f"{name} must be {_in_words(kind)}; got {value!r}") from None
        object.__setattr__(owner, name, declared)


def _is_class(kind: Any) -> bool:
    """Whether a type is a class whose instances can be told, unlike those of a protocol."""
    described = is_typeddict(kind) or getattr(kind, "_is_protocol", False)
    return isinstance(kind, type) and not described


def as_python(value: Any) -> Any:
    """Return numbers of NumPy and JAX as Python's, and arrays and lists as tuples."""
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    return tuple(map(as_python, value)) if isinstance(value, tuple | list) else value


def _in_words(kind: Any) -> str:
    """Return what a type is in words."""
    origin, members = get_origin(kind), get_args(kind)
    if origin in UNIONS:
        return " or ".join(map(_in_words, members))
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin is tuple:
        if members[0] not in SEVERAL:
            return f"a tuple of {_in_words(members[0])}"
        count = "" if members[-1] is Ellipsis else f"{len(members)} "
        return count + SEVERAL[members[0]]
    return "None" if kind is type(None) else NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _members(kind: Any) -> dict[str, type]:
    """Return the dataclasses in a union by name; none if it is another type."""
    if get_origin(kind) not in UNIONS:
        return {}
    classes = [cls for cls in get_args(kind) if cls is not type(None)]
    if len(classes) < 2 or not all(map(dataclasses.is_dataclass, classes)):
        return {}
    return {cls.__name__: cls for cls in classes}


def _structure_union(kind: Any) -> Any:
    members, optional = _members(kind), type(None) in get_args(kind)

    def structure(data: Any, _: Any) -> Any:
        if (data is None and optional) or isinstance(data, tuple(members.values())):
            return data
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


def _is_one_or_several(kind: Any) -> bool:
    """Whether a type is a number or the like, or a tuple of some, or perhaps None."""
    members = {*get_args(kind)} - {type(None)} if get_origin(kind) in UNIONS else set()
    tuples = {member for member in members if get_origin(member) is tuple}
    return len(members) == 2 and len(tuples) == 1 and members - tuples <= NAMES.keys()


def _structure_one_or_several(kind: Any) -> Any:
    one = next(member for member in get_args(kind) if member in NAMES)
    several = next(member for member in get_args(kind) if get_origin(member) is tuple)
    optional = type(None) in get_args(kind)

    def structure(data: Any, _: Any) -> Any:
        if data is None and optional:
            return None
        return _CONVERTER.structure(data, several if isinstance(data, list | tuple) else one)

    return structure


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
        if isinstance(data, kind):  # as a config in Python has it
            return data
        if isinstance(data, dict):
            data = {name: v for name, v in data.items() if v is not None or name in names}
        return structure(data, kind)

    return without_dropped


NAMES: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "a text"},
    Path: "a path",
}
"""The types that are no containers, in words."""
SEVERAL: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}
UNIONS = (Union, types.UnionType)

_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_structure_hook_factory(dataclasses.is_dataclass, _structure_dataclass)
_CONVERTER.register_structure_hook_factory(lambda kind: get_origin(kind) is tuple, _structure_tuple)
for _kind in NAMES:
    _CONVERTER.register_structure_hook(_kind, _structure_plain)
configure_union_passthrough(bool | int | float | str | None, _CONVERTER)
_CONVERTER.register_structure_hook_factory(_is_one_or_several, _structure_one_or_several)
_CONVERTER.register_structure_hook_factory(lambda kind: bool(_members(kind)), _structure_union)
_CONVERTER.register_unstructure_hook_factory(lambda kind: bool(_members(kind)), _unstructure_union)
