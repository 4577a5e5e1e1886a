"""Reading JSON that a model wrote: strict, and with a reason when it is not JSON."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from qwq_rl.verifiers.verdicts import shown

DEEPEST = 100


class NotJson(ValueError):
    """The text is not exactly one JSON value; the message says why."""


def parse_one(text: str) -> Any:
    """The one JSON value that `text` is; raises NotJson for anything else.

    No JSON either: NaN, a repeated key, more than `DEEPEST` levels, and half a surrogate pair, which no file can hold.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)
    except RecursionError:
        raise NotJson("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except NotJson:
        raise
    except ValueError:
        raise NotJson("a number in it has too many digits") from None
    if _deeper(value, DEEPEST):
        raise NotJson(f"it is nested too deeply: {DEEPEST} levels are allowed")
    if "\\ud" in text.lower() and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        raise NotJson("a text in it holds half a surrogate pair")
    return value


def unfenced(text: str) -> str:
    """`text` without one Markdown code fence around the whole of it."""
    text = text.strip()
    if not (text.startswith("```") and text.endswith("```") and len(text) >= 6):
        return text
    first, _, rest = text[3:-3].partition("\n")
    return rest.strip() if first.strip() in ("", "json") else text


def canonical(value: Any) -> str:
    """A text that two JSON values share exactly if they are equal: 1 is 1.0 but not true, the order of keys is free."""
    return json.dumps(_integral(value), sort_keys=True)


def _integral(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _integral(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_integral(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _deeper(value: Any, levels: int) -> bool:
    """Whether `value` holds arrays and objects within each other on more than so many levels."""
    level = [value]
    for _ in range(levels + 1):
        level = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise NotJson(f"the key {shown(twice)!r} stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise NotJson(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"the number {text[:20]} is too large")
    return value
