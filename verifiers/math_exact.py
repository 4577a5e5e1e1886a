"""Deciding ordinary math answers exactly and at once: numbers, lists of them, words. No symbolic algebra.

`decide` answers True, False, or None for what needs real algebra. Numbers are compared as fractions, so 2^-98 and
2^-99 differ; a decimal equals a fraction that it can only approximate within a relative 1e-6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from qwq_rl.verifiers.arithmetic import NotExact, evaluate

LONGEST = 300
"""Characters of an answer that is still read as numbers."""
TOLERANCE = Fraction(1, 10**6)

UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "，": ",", "（": "(", "）": ")", "％": "%", "＝": "=", "。": "."}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
NOISE = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|bigl?|bigr|Bigl?|Bigr|limits)(?![a-zA-Z])|\\[()\[\]]|\\[,!;:]|\\q?quad(?![a-zA-Z])"
)
TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}")
UNIT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s?\{([^{}]*)\}\s?(?:\^\s?\{?(\d)\}?)?$")
PLAIN_UNIT = re.compile(r"(?<=[\d}) ])([A-Za-z][A-Za-z. ]{0,40})\s?(?:\^\s?\{?(\d)\}?)?$")
DEGREES = re.compile(r"(?:\^\s?\{?\s?\\circ\s?\}?|°)$")
VARIABLE = re.compile(r"^(\\?[A-Za-z]+(?:_\w|_\{\w+\})?)\s?(?:=|\\in(?![a-z]))\s?")
PLAIN = re.compile(r"[\d\s+\-*/^().,{}]*")
ROOT = re.compile(r"\^\s?[{(][^})]*[./]")
BROKEN = re.compile(r"[-+*/=^]$|^[*/^]|\"")
WORDS = re.compile(r"[A-Za-z][A-Za-z ]*")
ALIASES = {
    "cm": "centimeter", "mm": "millimeter", "m": "meter", "km": "kilometer", "in": "inch", "inches": "inch",
    "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "g": "gram", "kg": "kilogram", "lb": "pound",
    "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "l": "liter", "ml": "milliliter",
    "mph": "miles per hour", "sq": "square", "deg": "degree", "$": "dollar", "usd": "dollar",
}  # fmt: skip
NO_UNITS = {
    "million", "billion", "trillion", "thousand", "hundred", "dozen", "percent",
    "pi", "sqrt", "sin", "cos", "tan", "log", "exp", "mod", "and", "not", "or", "times",
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """An exact value, how it was written, and what stood beside it."""

    value: Fraction
    decimal: bool
    unit: str = ""
    name: str = ""


@dataclass(frozen=True)
class Several:
    """Numbers in `brackets`; without brackets, and in braces, the order does not matter."""

    brackets: str
    numbers: tuple[Number, ...]


def decide(answer: str, gold: str) -> bool | None:
    """Whether `answer` equals `gold`, or None where this needs algebra. Pure; time linear in the lengths."""
    if squeezed(answer) == squeezed(gold):
        return True
    if len(answer) > LONGEST or len(gold) > LONGEST:
        return None
    left, right = read(answer), read(gold)
    if left is not None and right is not None:
        return _equal(left, right)
    if right is not None:
        return False if _cannot_be_a_number(answer) else None
    return _same_words(answer, gold)


def squeezed(text: str) -> str:
    """`text` without what only changes its looks."""
    text = re.sub(r"(?<=\d) (?=\d)", "_", TEXT.sub(r"\1", _plain(text)))  # 1 2 is not 12
    return text.replace(" ", "").rstrip(".")


def read(text: str) -> Number | Several | None:
    """`text` as an exact number or several of them, or None."""
    text = _plain(text)
    one = _number(text)
    if one is not None:
        return one
    text = VARIABLE.sub("", text) if text.endswith(("}", ")", "]")) else text
    brackets, inside = _brackets(text)
    parts = _split(inside)
    numbers = [_number(part.strip()) for part in parts]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or (len(known) == 1 and not brackets):
        return None
    return Several(brackets, tuple(known))


def _plain(text: str) -> str:
    text = text.translate(UNICODE)
    text = re.sub(r"(?<=\d)(?:,\\!|\\[,!]|\{,\})(?=\d{3}(?!\d))", "", text)  # 1\,234 and 1{,}234
    text = re.sub(r"(?<!\\)\$(?=\d)", r"\\$", text) if text.count("$") == 1 else re.sub(r"(?<!\\)\$", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", NOISE.sub(" ", text))
    text = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "*", text)
    return " ".join(text.split()).strip().removesuffix(".").strip()


def _number(text: str) -> Number | None:
    match = VARIABLE.match(text)
    name = match.group(1) if match else ""
    body, unit = _without_unit(text[match.end() :] if match else text)
    try:
        value, decimal = evaluate(body)
    except NotExact:
        return None
    return Number(value, decimal, unit, name)


def _without_unit(text: str) -> tuple[str, str]:
    for sign in (r"\$", "€", "£"):
        if text.startswith(sign):
            return text[len(sign) :].strip(), "dollar" if sign == r"\$" else sign
    if text.endswith("%"):
        return text.removesuffix("%").removesuffix("\\").strip(), "%"
    degrees = DEGREES.search(text)
    if degrees:
        return text[: degrees.start()].strip(), "degree"
    match = UNIT.search(text) or PLAIN_UNIT.search(text)
    if not match or not _is_unit(match):
        return text, ""
    return text[: match.start()].strip(), _unit_name(match.group(1)) + (match.group(2) or "")


def _is_unit(match: re.Match[str]) -> bool:
    words = match.group(1).lower().replace(".", " ").split()
    if not words or set(words) & NO_UNITS:
        return False
    return match.group(0).startswith("\\") or all(len(word) >= 3 or word in ("cm", "mm", "km", "kg") for word in words)


def _unit_name(text: str) -> str:
    words = [ALIASES.get(word, word.removesuffix("s")) for word in text.lower().replace(".", " ").split()]
    return " ".join(ALIASES.get(word, word) for word in words)


def _brackets(text: str) -> tuple[str, str]:
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "{}", text[2:-2]
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(text) > 2:
        return text[0] + text[-1], text[1:-1]
    return "", text


def _split(text: str) -> list[str]:
    """Parts between the commas, semicolons, `and` and `or` outside all brackets."""
    text = re.sub(r"\\(?:text|mbox)\s?\{\s?(?:and|or)\s?\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])|;", ",", text)
    text = re.sub(r",\s?,", ",", text)
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _equal(left: Number | Several, right: Number | Several) -> bool | None:
    if isinstance(left, Number) and isinstance(right, Number):
        return _same_number(left, right)
    if isinstance(left, Number) or isinstance(right, Number):
        several = left if isinstance(left, Several) else right
        assert isinstance(several, Several)
        return None if several.brackets or len({n.value for n in several.numbers}) == 1 else False
    if left.brackets in ("", "{}") and right.brackets in ("", "{}"):
        return _same_set(left.numbers, right.numbers)
    if not left.brackets or not right.brackets:
        return None
    pairs = zip(left.numbers, right.numbers, strict=False)
    same = len(left.numbers) == len(right.numbers) and all(_same_number(a, b) for a, b in pairs)
    return same and left.brackets == right.brackets


def _same_set(left: tuple[Number, ...], right: tuple[Number, ...]) -> bool:
    def covered(some: tuple[Number, ...], others: tuple[Number, ...]) -> bool:
        return all(any(_same_number(one, other) for other in others) for one in some)

    return covered(left, right) and covered(right, left)


def _same_number(left: Number, right: Number) -> bool | None:
    if left.name and right.name and left.name != right.name:
        return None
    if "%" in (left.unit, right.unit) and left.unit != right.unit:
        percent, other = (left, right) if left.unit == "%" else (right, left)
        return not other.unit and other.value in (percent.value, percent.value / 100)
    if left.unit and right.unit and left.unit != right.unit:
        return False
    if left.value == right.value:
        return True
    if left.decimal == right.decimal or _terminates(left.value if right.decimal else right.value):
        return False
    return abs(left.value - right.value) <= TOLERANCE * abs(left.value if right.decimal else right.value)


def _terminates(value: Fraction) -> bool:
    """Whether a decimal can write `value` in full."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _cannot_be_a_number(answer: str) -> bool:
    """Words and broken arithmetic equal no exact number, whatever algebra is tried on them."""
    text = _plain(answer)
    if WORDS.fullmatch(text) or BROKEN.search(text):
        return True
    if any(text.count(one) != text.count(other) for one, other in ("()", "[]", "{}")):
        return True
    return PLAIN.fullmatch(text) is not None and not ROOT.search(text)


def _same_words(answer: str, gold: str) -> bool | None:
    """Compare words as words, never as products of symbols; None where one side is no word."""
    left, right = _as_words(answer), _as_words(gold)
    if right is None:
        return None
    if left is None:
        return False if isinstance(read(answer), Number) else None
    if max(map(len, f"{left} {right}".split())) >= 3:
        return left.casefold() == right.casefold()
    if len(left) > 1 and sorted(left) == sorted(right):
        return None  # xy may be the product yx
    return left == right


def _as_words(text: str) -> str | None:
    text = re.sub(r"\s+", " ", TEXT.sub(r"\1", _plain(text))).strip(" .")
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    text = choice.group(1) if choice else text
    return text if WORDS.fullmatch(text) else None
