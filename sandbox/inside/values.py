"""Encodes Python values as JSON that keeps their types, to send data out of a jail. Decoding builds data, runs no code.

JSON values stand for themselves. Every other value is an object with one key that starts with `$`. An instance of a
subclass (Counter, namedtuple, IntEnum) is sent as the type it extends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_WIDE_INT = 1 << 4096
"""Larger integers are sent in hexadecimal: Python refuses to convert more than 4300 decimal digits."""


class NotData(TypeError):
    """A value is not data but, for example, a function or an object."""


def encode(value: Any, reference: Callable[[Any], Any] | None = None) -> Any:
    """The form of `value` for `json.dumps`.

    `reference` encodes what is not data; without it, `NotData` is raised.
    """
    # methods of the base types are named (`str.__str__`): a subclass in the submission may override its own
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_WIDE_INT < value < _WIDE_INT else {"$int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item, reference) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, reference) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        items = [(encode(name, reference), encode(item, reference)) for name, item in dict.items(value)]
        if all(isinstance(name, str) and not name.startswith("$") for name, _ in items):
            return dict(items)
        return {"$dict": [list(item) for item in items]}
    if isinstance(value, set | frozenset):
        name = "$set" if isinstance(value, set) else "$frozenset"
        return {name: [encode(item, reference) for item in value]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"$complex": [repr(value.real), repr(value.imag)]}
    if reference is None:
        raise NotData(f"a {type(value).__name__} is not data")
    return reference(value)


def decode(value: Any, reference: Callable[[Any], Any] | None = None) -> Any:
    """The value that `encode` was given. Raises ValueError, TypeError or LookupError for malformed input."""
    if isinstance(value, list):
        return [decode(item, reference) for item in value]
    if not isinstance(value, dict):
        return value
    tag = _tag(value)
    if tag is None:
        return {name: decode(item, reference) for name, item in value.items()}
    body = value[tag]
    if tag == "$dict":
        return {decode(name, reference): decode(item, reference) for name, item in body}
    if tag in _BUILDERS:
        return _BUILDERS[tag](decode(item, reference) for item in body)
    if tag == "$bytes":
        return bytes.fromhex(body)
    if tag == "$complex":
        return complex(float(body[0]), float(body[1]))
    if tag == "$ref" and reference is not None:
        return reference(body)
    return _number(tag, body)


def decode_json(value: Any) -> Any:
    """Decode a value as far as JSON can hold it, with tuples as lists.

    Raises ValueError, TypeError or LookupError for everything else. The judge uses it on the values that a submission
    returns. It builds no sets and no dicts with number keys: a submission could choose numbers whose hashes collide.
    """
    if isinstance(value, list):
        return [decode_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = _tag(value)
    if tag is None:
        return {name: decode_json(item) for name, item in value.items()}
    body = value[tag]
    if tag == "$tuple":
        return [decode_json(item) for item in body]
    if tag == "$dict":
        if not all(isinstance(name, str) for name, _ in body):
            raise ValueError("a dict whose keys are not strings")
        return {name: decode_json(item) for name, item in body}
    return _number(tag, body)


_BUILDERS: dict[str, Callable[[Any], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


def _tag(value: dict[str, Any]) -> str | None:
    """The `$` key of an encoded value; None for a plain dict."""
    name = next(iter(value), "")
    return name if len(value) == 1 and name.startswith("$") else None


def _number(tag: str, body: Any) -> int | float:
    if tag == "$int":
        return int(body, 16)
    if tag == "$float":
        return float(body)
    raise ValueError(f"{tag[1:]} is not data that can be compared")
