"""Whether a JSON value has the shape that a TypedDict gives it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict


def conforms(value: Any, schema: Any, place: str = "") -> list[str]:
    """Return where a JSON value departs from a schema, a sentence each; empty where it conforms.

    `schema` is a TypedDict, a Literal, a union, `list[...]`, `dict[str, ...]`, a plain JSON type or Any. A whole number
    is a float too; true and false are no numbers. A key that the TypedDict does not name is a departure.
    """
    return list(_departures(value, schema, place))


def _departures(value: Any, schema: Any, place: str) -> Iterator[str]:
    origin = get_origin(schema)
    if schema is Any:
        return
    if is_typeddict(schema):
        yield from _record_departures(value, schema, place)
    elif origin in (Required, NotRequired):
        yield from _departures(value, get_args(schema)[0], place)
    elif origin in (Union, types.UnionType):
        yield from _union_departures(value, get_args(schema), place)
    elif origin is Literal:
        if value not in get_args(schema):
            yield f"{place or 'it'} is {value!r}, none of {', '.join(map(repr, get_args(schema)))}"
    elif origin is list and isinstance(value, list):
        for at, item in enumerate(value):
            yield from _departures(item, get_args(schema)[0], f"{place}[{at}]")
    elif origin is dict and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _departures(item, get_args(schema)[1], _inside(place, key))
    elif not _is_plain(value, origin or schema):
        yield f"{place or 'it'} is {value!r}, no {(origin or schema).__name__}"


def _record_departures(value: Any, schema: Any, place: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{place or 'it'} is {value!r}, no {schema.__name__}"
        return
    fields = get_type_hints(schema, include_extras=True)
    # Not __required_keys__: where annotations are strings it calls every key required.
    for name, field in fields.items():
        if name not in value and get_origin(field) is not NotRequired:
            yield f"{_inside(place, name)} is missing"
    for key, item in value.items():
        if key in fields:
            yield from _departures(item, fields[key], _inside(place, key))
        else:
            yield f"{_inside(place, key)} is not part of {schema.__name__}"


def _union_departures(value: Any, choices: tuple[Any, ...], place: str) -> Iterator[str]:
    """Nothing where one choice fits; else what is wrong with the choice that is not null."""
    found = [conforms(value, choice, place) for choice in choices]
    if all(found):
        yield from next((wrong for wrong, choice in zip(found, choices, strict=True) if choice is not type(None)), [])


def _is_plain(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _inside(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)
