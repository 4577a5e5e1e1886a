"""Turn values into HTML: escaping, and how numbers, differences, intervals and durations are written."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

NONE = "–"
"""Shown in place of a value that is missing."""


def esc(value: object) -> str:
    """Escape for HTML text and for quoted attributes."""
    return html.escape(str(value), quote=True)


def data_block(value: object, name: str = "") -> str:
    """Return a script element with `value` as JSON, which does not run. No text in it can end it or start another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate is legal in JSON and cannot be written as UTF-8.
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match.group()):04x}", text)
    identity = f' id="{esc(name)}"' if name else ""
    return f'<script type="application/json"{identity}>{text}</script>'


def finite(value: object) -> float | None:
    """Return a finite number as float, anything else (null, absent, NaN, infinite, bool, text) as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def at(record: object, *keys: str) -> Any:
    """The value under nested keys, or None if any of them is missing."""
    for key in keys:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record


def whole(value: object) -> int:
    """The value as a count; 0 if it is not a number."""
    return int(finite(value) or 0)


def fields(record: object, *keys: str) -> Mapping[str, Any]:
    """The record under nested keys; empty if there is none."""
    nested = at(record, *keys)
    return nested if isinstance(nested, Mapping) else {}


def entries(record: object, *keys: str) -> list[Any]:
    """The list under nested keys; empty if there is none."""
    nested = at(record, *keys)
    return nested if isinstance(nested, list) else []


def number(value: object, digits: int = 2) -> str:
    """A plain number with a true minus sign."""
    amount = finite(value)
    if amount is None:
        return NONE
    text = f"{amount:.{digits}f}"
    # A small negative number rounds to -0.00, which must not look negative.
    return (text if float(text) else text.lstrip("-")).replace("-", "−")


def signed(value: object, digits: int = 2) -> str:
    """A difference, always with its sign; what rounds to 0 has no sign."""
    amount = finite(value)
    if amount is None:
        return NONE
    text = f"{amount:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", "−")


def short(value: object) -> str:
    """About three significant digits, for axes and tooltips: 0.0123, 1.25, 340, 12.5k."""
    amount = finite(value)
    if amount is None:
        return NONE
    size = abs(amount)
    if size and size < 1e-3:
        text = f"{amount:.1e}".replace("e-0", "e-")
    elif size < 1000:
        text = f"{amount:.3g}"
    else:
        text = f"{amount / 1000:.3g}k" if size < 1e6 else f"{amount / 1e6:.3g}M"
    return text.replace("-", "−", 1) if amount < 0 else text


def interval(estimate: object, digits: int = 2) -> str:
    """The interval of an estimate `{mean, low, high}`: `0.95–0.97`, or `−0.02 to 0.03` if it begins below 0."""
    low, high = finite(at(estimate, "low")), finite(at(estimate, "high"))
    if low is None or high is None:
        return NONE
    return (
        f"{number(low, digits)}–{number(high, digits)}"
        if low >= 0
        else f"{number(low, digits)} to {number(high, digits)}"
    )


def duration(seconds: object) -> str:
    """`8.4 s`, `4 min 12 s`, `2 h 05 min`, `3 d 4 h`."""
    amount = finite(seconds)
    if amount is None:
        return NONE
    if round(amount) < 60:
        return f"{amount:.1f} s" if amount < 9.95 else f"{amount:.0f} s"
    total = round(amount)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"


def moment(timestamp: object) -> str:
    """A Unix time as a date and a minute, in UTC."""
    amount = finite(timestamp)
    return NONE if amount is None else datetime.fromtimestamp(amount, UTC).strftime("%-d %B %Y, %H:%M UTC")


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def title(stage: str) -> str:
    """A stage's name for people: `1_math_code` is `math code`."""
    words = re.sub(r"^\d+[_-]*", "", stage).replace("_", " ").strip()
    return words or stage


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A plain table of already escaped cells, the first of each row its heading."""
    head_cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body_rows = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return scrolled("plain", caption, f"<thead><tr>{head_cells}</tr></thead><tbody>{body_rows}</tbody>")


def scrolled(kind: str, caption: str, content: str) -> str:
    """A table of class `kind` under its caption, in a region that scrolls by itself on a narrow screen."""
    return (
        f'<p class="caption">{esc(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}">'
        f'<table class="{kind}" aria-label="{esc(caption)}">{content}</table></div>'
    )


def folded(summary: str, content: str, opened: bool = False) -> str:
    """A block that opens on demand; `summary` is plain text, `content` HTML."""
    return f"<details{' open' if opened else ''}><summary>{esc(summary)}</summary>{content}</details>"
