"""Checked values of a configuration become what the code receives: settings, paths, tuples, floats."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

S = TypeVar("S")


def to_settings(cls: type[S], values: Mapping[str, Any]) -> S:
    """An instance of the settings class `cls` from checked values.

    Nested settings are made too; an integer becomes a float where the type says float. A value of None where
    the type has no None is a setting that a later layer took back: the default stands.

    Raises:
        TypeError: a key that `cls` does not have (the configuration check would have said so).
    """
    hints = get_type_hints(cls, include_extras=True)
    given = {}
    for key, value in values.items():
        if key not in hints:
            raise TypeError(f"{cls.__name__} has no setting {key!r}")
        if value is None and not takes_none(hints[key]):
            continue
        given[key] = convert(value, hints[key])
    return cls(**given)


def to_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a part: text becomes Path, a list a tuple, a mapping a dataclass where hints say so.

    Hints that cannot be evaluated (names imported for type checkers only) leave their values as they are.
    """
    callee = vars(function).get("__init__", function) if isinstance(function, type) else function
    try:
        hints = get_type_hints(callee, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        hints = {}
    return {key: convert(value, hints.get(key, Any)) for key, value in values.items()}


def convert(value: Any, hint: Any) -> Any:
    """`value`, in the form that the type hint asks for; unchanged where the hint says nothing."""
    origin = get_origin(hint)
    if origin is Annotated:
        return convert(value, get_args(hint)[0])
    if value is None or isinstance(value, bool) or hint is Any or origin is Literal:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint))
    if hint is float:
        return float(value) if isinstance(value, int) else value
    if isinstance(value, str):
        return Path(value) if isinstance(hint, type) and issubclass(hint, Path) else value
    if isinstance(value, Mapping):
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return to_settings(hint, value)
        of = get_args(hint)[1] if isinstance(origin, type) and issubclass(origin, Mapping) else Any
        return {key: convert(item, of) for key, item in value.items()}
    if isinstance(value, list):
        return _convert_list(value, hint if origin is None else origin, get_args(hint))
    return value


def takes_none(hint: Any) -> bool:
    """Whether None is a value of the type."""
    origin = get_origin(hint)
    if origin is Annotated:
        return takes_none(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return any(takes_none(member) for member in get_args(hint))
    return hint in (Any, None, type(None), object) or (origin is Literal and None in get_args(hint))


def _convert_union(value: Any, members: tuple[Any, ...]) -> Any:
    """By the first member that has the value's own form, else by the first that changes it."""
    plain = [get_args(member)[0] if get_origin(member) is Annotated else member for member in members]
    if type(value) in plain:
        return value
    for member in plain:
        form = get_origin(member) or member
        is_record = dataclasses.is_dataclass(form) and isinstance(value, Mapping)
        is_sequence = isinstance(form, type) and issubclass(form, (list, tuple)) and isinstance(value, list)
        is_mapping = isinstance(form, type) and issubclass(form, Mapping) and isinstance(value, Mapping)
        if is_record or is_sequence or is_mapping:
            return convert(value, member)
    for member in plain:
        converted = convert(value, member)
        if type(converted) is not type(value):
            return converted
    return value


def _convert_list(value: list[Any], form: Any, of: tuple[Any, ...]) -> Any:
    if form is tuple:
        if not of or of[-1] is Ellipsis:
            return tuple(convert(item, of[0] if of else Any) for item in value)
        return tuple(convert(item, hint) for item, hint in zip(value, of, strict=False))
    items = [convert(item, of[0] if len(of) == 1 else Any) for item in value]
    return form(items) if form in (set, frozenset) else items
