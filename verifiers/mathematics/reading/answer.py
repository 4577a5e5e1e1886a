"""From the text of an answer to what it can mean: readings as mathematics, words, the letter of a choice."""

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
"""Characters of an answer that is still read."""
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
COMMANDS = re.compile(r"\\[a-zA-Z]+")


class Reading(NamedTuple):
    """What one text can mean."""

    text: str
    """Without its looks."""
    plain: str
    """Without commands around words either."""
    nodes: tuple[Node, ...]
    """Its readings as mathematics: none, one, or two where a comma may belong to a number or a list."""
    words: str = ""
    """Its meaning as words, "" where it is none."""
    letter: str = ""
    """The choice that it names, alone."""
    letters: str = ""
    """Several choices."""
    label: tuple[str, str] | None = None
    """The choice, and the text beside it."""


@lru_cache(maxsize=8192)
def read(text: str) -> Reading:
    """Read a text; what is too long has no readings."""
    if len(text) > LONGEST:
        return Reading(text, text, ())
    cleaned = without_brackets(clean(UNIT_VECTOR.sub(r"\\hat{\1}", text)))
    exception = EXCEPTION.fullmatch(cleaned)
    if exception:
        cleaned = rf"\mathbb{{R}} \setminus \{{ {exception.group(1)} \}}"
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
    based = BASE.fullmatch(plain.replace(" _", "_"))
    if based:
        digits = based.group(1) or based.group(3) or based.group(4)
        return (Node("base", (), (digits.upper(), int(based.group(2) or based.group(5) or 16))),)
    chinese = chinese_amount(plain) if CHINESE.fullmatch(plain) else None
    if chinese is not None:
        return (Node("percent", (number(chinese * 100),)) if plain.startswith("百分之") else number(chinese),)
    found = []
    for grouped in (True, False) if GROUPED.search(cleaned) else (True,):
        try:
            node = parse(cleaned, grouped)
        except (Unreadable, RecursionError):
            continue
        if node not in found:
            found.append(node)
    return tuple(found)


def _words(plain: str) -> str:
    """The meaning of a text that has words only."""
    if not WORDY.fullmatch(plain) or len(plain) > 400 or CHINESE.fullmatch(plain):
        return ""
    value = amount(plain)
    return str(value) if value is not None else meaning(plain)


def without_brackets(text: str) -> str:
    """`text` without all but one of the brackets that stand doubled around the whole of it."""
    for opening, closing in ("()", "{}"):
        if not text.startswith(opening * 2):
            continue
        outer = len(text) - len(text.lstrip(opening))
        outer = min(outer, len(text) - len(text.rstrip(closing)))
        depth = lowest = outer
        for char in text[outer : len(text) - outer]:
            depth += (char == opening) - (char == closing)
            lowest = min(lowest, depth)
        if lowest > 1 and depth == outer:
            text = text[lowest - 1 : len(text) - lowest + 1]
    return text


def squeezed(text: str) -> str:
    """`text` without its white space, where that says nothing."""
    return re.sub(r"(?<![a-zA-Z0-9])\s+|\s+(?![a-zA-Z0-9])", "", text)
