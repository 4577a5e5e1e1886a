"""Is what came out what was expected? Bytes with bytes, data with data; nothing of a submission runs here."""

from __future__ import annotations

import json
import math
from typing import Any

TOLERANCE = 1e-6
"""Of `float`: absolute, and relative to the expected value."""


def same_output(got: bytes, expected: bytes, compare: str) -> bool:
    """Compare a program's standard output with what was expected, as `Job.compare` says."""
    if compare == "exact":
        return got == expected
    if compare == "unordered":
        return sorted(_lines(got)) == sorted(_lines(expected))
    left, right = got.split(), expected.split()
    if compare == "tokens":
        return left == right
    return len(left) == len(right) and all(map(_close_tokens, left, right))


def same_value(got: Any, expected: Any, compare: str) -> bool:
    """Compare a returned value, as decoded data, with the expected JSON value, as `Job.compare` says."""
    if compare == "unordered" and isinstance(got, list) and isinstance(expected, list | tuple):
        return sorted(map(_form, got)) == sorted(map(_form, expected))
    return _equal(got, expected, loose=compare == "float")


def _lines(text: bytes) -> list[list[bytes]]:
    return [words for line in text.splitlines() if (words := line.split())]


def _close_tokens(got: bytes, expected: bytes) -> bool:
    if got == expected:
        return True
    try:
        return _close(float(got), float(expected))
    except ValueError:
        return False


def _close(got: float, expected: float) -> bool:
    if math.isnan(got) or math.isnan(expected):
        return math.isnan(got) and math.isnan(expected)
    if math.isinf(got) or math.isinf(expected):
        return got == expected
    return abs(got - expected) <= TOLERANCE * max(1.0, abs(expected))


def _equal(got: Any, expected: Any, *, loose: bool) -> bool:
    if isinstance(expected, list | tuple):
        return (
            type(got) is list
            and len(got) == len(expected)
            and all(_equal(left, right, loose=loose) for left, right in zip(got, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            type(got) is dict
            and got.keys() == expected.keys()
            and all(_equal(got[name], value, loose=loose) for name, value in expected.items())
        )
    if loose and type(got) in (int, float) and type(expected) in (int, float):
        try:
            return _close(float(got), float(expected))
        except OverflowError:
            return bool(got == expected)
    if type(got) is not type(expected):
        return False
    return bool(got == expected) or (isinstance(got, float) and math.isnan(got) and math.isnan(expected))


def _form(value: Any) -> str:
    """A text that equal values share: sorting it keeps a long answer from costing its square."""
    return json.dumps(value, sort_keys=True)
