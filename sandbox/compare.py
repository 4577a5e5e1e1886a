"""Compares outputs and returned values with the expected ones. It handles plain bytes and data only; no submitted code
runs here.
"""

from __future__ import annotations

import json
import math
from typing import Any

TOLERANCE = 1e-6
"""For `float`: absolute, and relative to the expected value; the larger of the two counts."""


def same_output(got: bytes, expected: bytes, compare: str) -> bool:
    """Compare a program's standard output with the expected output, by the rule `Job.compare`."""
    if compare == "exact":
        return got == expected
    if compare == "unordered":
        return sorted(_lines(got)) == sorted(_lines(expected))
    got_tokens, expected_tokens = got.split(), expected.split()
    if compare == "tokens":
        return got_tokens == expected_tokens
    return len(got_tokens) == len(expected_tokens) and all(map(_close_tokens, got_tokens, expected_tokens))


def same_value(got: Any, expected: Any, compare: str) -> bool:
    """Compare a returned value, as decoded data, with the expected JSON value, by the rule `Job.compare`."""
    if compare == "unordered" and isinstance(got, list) and isinstance(expected, list | tuple):
        return sorted(map(_sort_key, got)) == sorted(map(_sort_key, expected))
    return _equal(got, expected, loose=compare == "float")


def _lines(text: bytes) -> list[list[bytes]]:
    return [tokens for line in text.splitlines() if (tokens := line.split())]


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
            and all(
                _equal(got_item, expected_item, loose=loose)
                for got_item, expected_item in zip(got, expected, strict=True)
            )
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
        except OverflowError:  # an integer too large for a float
            return bool(got == expected)
    # 1, 1.0 and True are equal in Python, but not the same answer
    if type(got) is not type(expected):
        return False
    return bool(got == expected) or (isinstance(got, float) and math.isnan(got) and math.isnan(expected))


def _sort_key(value: Any) -> str:
    """A text that is the same for equal values. Sorting by it avoids comparing each element with each other one."""
    return json.dumps(value, sort_keys=True)
