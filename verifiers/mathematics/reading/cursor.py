"""Walks over the tokens of an answer, with a bound on the depth, and looks ahead for units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qwq_rl.verifiers.mathematics.reading.names import (
    CHANGED,
    CONDITIONS,
    FUNCTIONS,
    GREEK,
    JOINS,
    PART_WORDS,
    REFUSED,
    RELATIONS,
)
from qwq_rl.verifiers.mathematics.reading.tokens import Token, Unreadable
from qwq_rl.verifiers.mathematics.reading.units import LETTERS, unit_of
from qwq_rl.verifiers.mathematics.reading.words import NUMBERS

DEEPEST = 60
MOST_WORDS = 16
"""Words in a unit, or in the name of what is counted."""
END = Token("end", "", False)
CLOSING = frozenset({")", "]", "}", r"\}", r"\rangle", r"\rbrace", ",", ";", "", "&", r"\\"})
VARIABLES = frozenset("abcxyz")
"""Letters that are taken for variables, never for units, as in `3abc`."""
NOT_UNITS = frozenset({"pi", "sqrt", "inf", "infinity", "oo", "mod", "base", "times", "over"})


class Cursor:
    """The tokens of one answer, and the index of the next one."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens, self.at, self.depth = list(tokens), 0, 0
        self.bars = 0
        """How many absolute values or conditions of a set are open. If any, the next bar closes one."""
        self.systems = 0
        """How many systems of cases are open. If any, "if" begins the condition of a case."""
        self.money = ""
        """The currency whose sign was before the number that is being read."""

    def peek(self, ahead: int = 0) -> Token:
        """The token that is `ahead` tokens after the next one, without taking it."""
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else END

    def next(self) -> Token:
        """Take the next token. Raises Unreadable at the end."""
        token = self.peek()
        if token.kind == "end":
            raise Unreadable("the end was not expected")
        self.at += 1
        return token

    def take(self, *texts: str) -> bool:
        """Take the next token if its text is one of `texts`."""
        token = self.peek()
        if token.text in texts and token.kind != "end":
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Take the token `text`, or raise Unreadable."""
        if not self.take(text):
            raise Unreadable(f"{text} was expected, not {self.peek().text or 'the end'}")

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Go one level down. Raises Unreadable below the deepest level."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("nested too deeply")
        try:
            yield
        finally:
            self.depth -= 1

    def unit_ahead(self) -> tuple[str, int]:
        """The unit that starts here, and how many tokens it takes; ("", 0) for none.

        The name of what is counted, as in `5 apples`, is a unit too.
        """
        words: list[str] = []
        ahead, bare_words = 0, 0
        while len(words) < MOST_WORDS:
            token = self.peek(ahead)
            if token.kind in ("word", "text") and token.text.lower() not in JOINS and token.text not in CONDITIONS:
                if self._changes_number(token, not words):
                    return "", 0
                if token.kind == "word" and not self._may_be_unit(ahead, token):
                    return "", 0
                bare_words += token.kind == "word"
                words.append(token.text)
                ahead += 1
            elif words and token.text == "^" and self._power_of_unit(ahead)[1]:
                power, length = self._power_of_unit(ahead)
                words[-1] += f" ^{power}"
                ahead += length
            elif words and token.text in ("/", r"\cdot", "-", "'") and self.peek(ahead + 1).kind in ("word", "text"):
                # `m/s`, `N\cdot m`, `man-hours`
                words.append("per" if token.text == "/" else " ")
                ahead += 1
            elif words and token.text == ".":
                ahead += 1
            else:
                break
        phrase = " ".join(" ".join(words).split())
        # Words outside of `\text` may be variables, so they must be a known unit or look like words.
        if not words or not self._ends_item(ahead) or (bare_words and not self._is_unit(words, phrase)):
            return "", 0
        return phrase, ahead

    @staticmethod
    def _changes_number(token: Token, is_first: bool) -> bool:
        """Whether a word beside a number changes the number or takes it back."""
        word = token.text.lower()
        is_lone = token.kind == "text" and len(word) == 1 and word.isascii() and word != "a" and not unit_of(token.text)
        return (
            word in REFUSED
            or word in NUMBERS
            or (is_first and word in PART_WORDS)
            or is_lone
            or bool(CHANGED.search(word))
        )

    def _may_be_unit(self, ahead: int, token: Token) -> bool:
        if (
            (token.text in FUNCTIONS and token.text not in ("min", "sec"))
            or token.text in GREEK
            or token.text in NOT_UNITS
        ):
            return False
        if set(token.text) <= VARIABLES:
            return False
        if len(token.text) > 1 or ahead:
            return True
        # `5 m` is five metres, `5m` the product of 5 and m.
        return token.spaced and token.text in LETTERS and self.at > 0 and self.tokens[self.at - 1].kind == "num"

    def _power_of_unit(self, ahead: int) -> tuple[str, int]:
        """The power of a unit, as `2` or `-1`, and how many tokens it takes from `^` on; ("", 0) for none."""
        length, text = 1, ""
        has_braces = self.peek(ahead + 1).text == "{"
        length += has_braces
        if self.peek(ahead + length).text == "-":
            text, length = "-", length + 1
        if self.peek(ahead + length).text not in ("1", "2", "3"):
            return "", 0
        text, length = text + self.peek(ahead + length).text, length + 1
        if has_braces and self.peek(ahead + length).text != "}":
            return "", 0
        return text, length + has_braces

    def _ends_item(self, ahead: int) -> bool:
        """Whether what follows can stand after a unit, so that the unit ends there."""
        token = self.peek(ahead)
        return (
            token.text in CLOSING
            or token.text in RELATIONS
            or token.text.lower() in JOINS
            or token.text in CONDITIONS
            or (token.kind == "num" and self.peek(ahead + 1).kind in ("word", "text"))
            or (token.text == "(" and self.peek(ahead + 1).kind in ("word", "text", "num", "cmd"))
        )

    @staticmethod
    def _is_unit(words: Sequence[str], phrase: str) -> bool:
        return unit_of(phrase) is not None or all(
            len(word) >= 3 for word in words if word not in ("per", "of", "in", "a", "an")
        )
