"""Reads the text of an answer as all that it can mean: mathematics, words, the letter of a choice."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from qwq_rl.verifiers.mathematics.reading.cleaning import clean
from qwq_rl.verifiers.mathematics.reading.node import Node, number
from qwq_rl.verifiers.mathematics.reading.parser import parse
from qwq_rl.verifiers.mathematics.reading.tokens import TEXT, Unreadable
from qwq_rl.verifiers.mathematics.reading.words import (
    CHINESE,
    amount,
    chinese_amount,
    choice,
    choices,
    labelled,
    meaning,
)

LONGEST = 3000
"""Characters of the longest answer that is read."""
WORDY = re.compile(r"(?=.*?(?:[^\W\d_]{2}|[\u3400-\u9fff]))[^\W\d_][^\d=+*/^_\\{}<>|$]*")
UNIT_VECTOR = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|vec|hat|overrightarrow)\s?\{(?:\\hat\s?\{)?\s?\\?([ijk])(?:math)?\s?\}(?:\})?"
)
EXCEPTION = re.compile(
    r"(?:\\text\s?\{)?(?:the set of )?(?:all )?reals?(?: numbers?)?(?: x)? except(?: for)?\s?\}?"
    r"(?: x =)?\s?([-\w\\{}/., ]+?)",
    re.IGNORECASE,
)
GROUPED = re.compile(r"\d,\d{3}(?!\d)")
BASE = re.compile(r"\(?([0-9A-Fa-f]+)\)?_\{?\(?(1[1-6])\)?\}?|0x([0-9A-Fa-f]+)|([0-9A-Fa-f]+)\s?\(?base[\s-](\d\d?)\)?")


class Reading(NamedTuple):
    """All that one text can mean."""

    text: str
    """The text without formatting."""
    plain: str
    """The text without formatting and without commands around words."""
    nodes: tuple[Node, ...]
    """The readings as mathematics: none, one, or two if a comma may belong to a number or to a list."""
    words: str = ""
    """The meaning as words, "" if it has none."""
    letter: str = ""
    """The letter of the choice that is the whole text."""
    letters: str = ""
    """The letters of several choices."""
    label: tuple[str, str] | None = None
    """The letter of a choice, and the text beside it."""


@lru_cache(maxsize=8192)
def read(text: str) -> Reading:
    """Read a text. A text that is too long has no mathematical readings."""
    if len(text) > LONGEST:
        return Reading(text, text, ())
    cleaned = without_brackets(clean(UNIT_VECTOR.sub(r"\\hat{\1}", text)))
    exception_match = EXCEPTION.fullmatch(cleaned)
    if exception_match:
        cleaned = rf"\mathbb{{R}} \setminus \{{ {exception_match.group(1)} \}}"
    plain = " ".join(TEXT.sub(r" \1 ", cleaned).replace(r"\ ", " ").split()).strip(" .")
    letter = choice(plain)
    return Reading(
        cleaned,
        plain,
        readings(cleaned, plain),
        _words(plain),
        letter,
        choices(plain) if not letter else "",
        labelled(plain),
    )


def readings(cleaned: str, plain: str) -> tuple[Node, ...]:
    """The readings of a cleaned text as mathematics."""
    base_match = BASE.fullmatch(plain.replace(" _", "_"))
    if base_match:
        digits = base_match.group(1) or base_match.group(3) or base_match.group(4)
        return (Node("base", (), (digits.upper(), int(base_match.group(2) or base_match.group(5) or 16))),)
    chinese = chinese_amount(plain) if CHINESE.fullmatch(plain) else None
    if chinese is not None:
        # 百分之 is a percent sign in words.
        return (Node("percent", (number(chinese * 100),)) if plain.startswith("百分之") else number(chinese),)
    nodes = []
    # `1,234` is one number, or a list of two.
    for grouped in (True, False) if GROUPED.search(cleaned) else (True,):
        try:
            node = parse(cleaned, grouped)
        except (Unreadable, RecursionError):
            continue
        if node not in nodes:
            nodes.append(node)
    return tuple(nodes)


def _words(plain: str) -> str:
    """The meaning of a text that has only words, else an empty text."""
    if not WORDY.fullmatch(plain) or len(plain) > 400 or CHINESE.fullmatch(plain):
        return ""
    value = amount(plain)
    return str(value) if value is not None else meaning(plain)


def without_brackets(text: str) -> str:
    """`text` with only one pair of the brackets that are doubled around the whole of it, as in `((x))`."""
    for opening, closing in ("()", "{}"):
        if not text.startswith(opening * 2):
            continue
        outer = len(text) - len(text.lstrip(opening))
        outer = min(outer, len(text) - len(text.rstrip(closing)))
        # Only brackets that stay open to the end enclose the whole text: in `((a)(b))` one pair does.
        depth = lowest = outer
        for char in text[outer : len(text) - outer]:
            depth += (char == opening) - (char == closing)
            lowest = min(lowest, depth)
        if lowest > 1 and depth == outer:
            text = text[lowest - 1 : len(text) - lowest + 1]
    return text


def squeezed(text: str) -> str:
    """`text` without the white space that has no meaning."""
    return re.sub(r"(?<![a-zA-Z0-9])\s+|\s+(?![a-zA-Z0-9])", "", text)
