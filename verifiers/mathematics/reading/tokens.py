"""Cuts a cleaned answer into tokens. Text inside `\\text{}` and the like becomes words, never variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from qwq_rl.verifiers.mathematics.reading.units import single


class Unreadable(Exception):
    """The text is no mathematics that is understood here, or it is too long or nested too deeply."""


class Token(NamedTuple):
    """One token: its `kind` is num, word (letters), text (letters inside `\\text`), cmd (`\\name`) or op."""

    kind: str
    text: str
    spaced: bool
    """Whether there was white space before it."""


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
    """The tokens of `text`; raises Unreadable on a character that has no meaning here.

    `grouped`: whether `1,234` is one number. If not, it is the two numbers 1 and 234.
    """
    tokens = list(_tokens(text, grouped, False))
    if len(tokens) > MOST_TOKENS:
        raise Unreadable(f"more than {MOST_TOKENS} tokens")
    return tokens


def _tokens(text: str, grouped: bool, as_text: bool) -> Iterator[Token]:
    position, spaced = 0, False
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"the character {text[position]!r}")
        kind = str(match.lastgroup)
        if kind == "num" and "," in match.group() and not grouped:
            match = SINGLE_NUMBER.match(text, position)
            assert match is not None, "a grouped number begins with digits"
        position = match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "text":
            yield from _text_tokens(match.group(), grouped, spaced)
        elif kind == "cjk" and len(match.group()) > 1 and match.group()[0] in "百千万亿" and not single(match.group()):
            position = match.start() + 1  # 5万元: 5 times 10,000, and then the unit
            yield Token("text", match.group()[0], spaced)
        elif kind in ("word", "cjk"):
            yield Token("text" if as_text or kind == "cjk" else "word", match.group(), spaced)
        else:
            yield Token(kind, match.group().replace(",", "") if kind == "num" else match.group(), spaced)
        spaced = False


def _text_tokens(command: str, grouped: bool, spaced: bool) -> Iterator[Token]:
    """The tokens of the content of one text command such as `\\text{...}`."""
    match = TEXT.match(command)
    assert match is not None, "the token is a text command"
    content = match.group(1).strip()
    # Fonts and operator names hold mathematics: `\mathbf{x}` is a variable, `\mathrm{sin}` a function.
    is_text = not MATH_FONTS.match(command)
    if command.startswith((r"\operatorname", r"\mathrm", r"\rm")) and (len(content) <= 1 or content in OPERATORS):
        is_text = False
    for index, token in enumerate(_tokens(content, grouped, is_text)):
        yield token._replace(spaced=spaced or (index > 0 and token.spaced))


OPERATORS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln", "lg", "exp", "max", "min",
    "gcd", "lcm",
    "sinh", "cosh", "tanh", "sgn", "tg", "ctg", "arctg",
}  # fmt: skip
