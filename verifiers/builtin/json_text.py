"""Reads JSON that a model wrote: strictly, and with a reason if it is not JSON."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from qwq_rl.verifiers.verdicts import shown

DEEPEST = 100
"""The most levels of arrays and objects within each other."""


class NotJson(ValueError):
    """The text is not exactly one JSON value; the message says why."""


def parse_one(text: str) -> Any:
    """The one JSON value that `text` is; raises NotJson for anything else.

    Also refused: NaN, a repeated key, more than `DEEPEST` levels, and half a surrogate pair, which no file can hold.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise NotJson("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except NotJson:
        raise
    except ValueError:
        raise NotJson("a number in it has too many digits") from None  # Python limits the digits of an int
    if _is_deeper(value, DEEPEST):
        raise NotJson(f"it is nested too deeply: {DEEPEST} levels are allowed")
    # The cheap test comes first: only an escape can make half a pair.
    if "\\ud" in text.lower() and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        raise NotJson("a text in it holds half a surrogate pair")
    return value


def unfenced(text: str) -> str:
    """`text` without the Markdown code fence around it, if one fence encloses all of it."""
    text = text.strip()
    if not (text.startswith("```") and text.endswith("```") and len(text) >= 6):
        return text
    first, _, rest = text[3:-3].partition("\n")
    return rest.strip() if first.strip() in ("", "json") else text


def canonical(value: Any) -> str:
    """A text that is the same for two JSON values exactly if they are equal.

    1 equals 1.0 but not true, and the order of keys does not matter.
    """
    return json.dumps(_whole_floats_to_int(value), sort_keys=True)


def _whole_floats_to_int(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_floats_to_int(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_floats_to_int(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects are nested in `value` more than `levels` deep."""
    values = [value]
    for _ in range(levels + 1):
        values = [parent for parent in values if isinstance(parent, dict | list)]
        values = [child for parent in values for child in (parent.values() if isinstance(parent, dict) else parent)]
        if not values:
            return False
    return True


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(repeated_key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise NotJson(f"the key {shown(repeated_key)!r} stands twice in one object")
    return members


def _refuse(name: str) -> Any:
    raise NotJson(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"the number {text[:20]} is too large")
    return value
