"""Cutting a cleaned answer into tokens; the text of `\\text{}` and the like becomes words that are never variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from qwq_rl.verifiers.mathematics.reading.units import single


class Unreadable(Exception):
    """The text is no mathematics that is understood here, or too long or too deep."""


class Token(NamedTuple):
    """One token: its `kind` is num, word (letters), text (letters inside `\\text`), cmd (`\\name`) or op."""

    kind: str
    text: str
    spaced: bool
    """Whether white space stood before it."""


MOST_TOKENS = 3000
TEXT_COMMANDS = (
    r"\\(?:text|textbf|textrm|textit|textsf|texttt|textnormal|textup|emph|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|rm|boldsymbol|bm|"
    r"operatorname\*?|underline|mathcal|mathfrak)"
)
TEXT = re.compile(TEXT_COMMANDS + r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
MATH_FONTS = re.compile(r"\\(?:mathbf|boldsymbol|bm|mathit|underline|mathcal|mathfrak|mathsf)")
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<num>\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![\d.A-Za-z]))?|\.\d+|\d+\.)"
    r"|(?P<text>" + TEXT_COMMANDS + r"\s*\{(?:[^{}]|\{[^{}]*\})*\})"
    r"|(?P<cmd>\\[a-zA-Z]+\*?|\\.)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<op><=|>=|!=|==|=>|->|\*\*|[-+*/^_=<>(){}\[\]|,;:!%&'~?.\"#@€£¥₹])"
    r"|(?P<cjk>[\u3400-\u9fff]+)",
)
SINGLE_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![\d.A-Za-z]))?|\.\d+|\d+\.")


def tokenize(text: str, grouped: bool = True) -> list[Token]:
    """The tokens of `text`; raises Unreadable on a character that means nothing here.

    `grouped`: whether `1,234` is one number; it may also be two.
    """
    tokens = list(_tokens(text, grouped, False))
    if len(tokens) > MOST_TOKENS:
        raise Unreadable(f"more than {MOST_TOKENS} tokens")
    return tokens


def _tokens(text: str, grouped: bool, as_text: bool) -> Iterator[Token]:
    at, spaced = 0, False
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise Unreadable(f"the character {text[at]!r}")
        kind = str(found.lastgroup)
        if kind == "num" and "," in found.group() and not grouped:
            found = SINGLE_NUMBER.match(text, at)
            assert found is not None, "a grouped number begins with digits"
        at = found.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "text":
            yield from _inside(found.group(), grouped, spaced)
        elif kind == "cjk" and len(found.group()) > 1 and found.group()[0] in "百千万亿" and not single(found.group()):
            at = found.start() + 1  # 5万元: five times ten thousand, of a currency
            yield Token("text", found.group()[0], spaced)
        elif kind in ("word", "cjk"):
            yield Token("text" if as_text or kind == "cjk" else "word", found.group(), spaced)
        else:
            yield Token(kind, found.group().replace(",", "") if kind == "num" else found.group(), spaced)
        spaced = False


def _inside(command: str, grouped: bool, spaced: bool) -> Iterator[Token]:
    found = TEXT.match(command)
    assert found is not None, "the token is a text command"
    content = found.group(1).strip()
    is_text = not MATH_FONTS.match(command)
    if command.startswith((r"\operatorname", r"\mathrm", r"\rm")) and (len(content) <= 1 or content in OPERATORS):
        is_text = False
    for place, token in enumerate(_tokens(content, grouped, is_text)):
        yield token._replace(spaced=spaced or (place > 0 and token.spaced))


OPERATORS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln", "lg", "exp", "max", "min",
    "gcd", "lcm",
    "sinh", "cosh", "tanh", "sgn", "tg", "ctg", "arctg",
}  # fmt: skip
