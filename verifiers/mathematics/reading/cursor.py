"""Walking over the tokens of an answer, with a bound on depth, and looking ahead for units."""

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
"""Of a unit, or of the name of what is counted."""
END = Token("end", "", False)
CLOSING = frozenset({")", "]", "}", r"\}", r"\rangle", r"\rbrace", ",", ";", "", "&", r"\\"})
VARIABLES = frozenset("abcxyz")
"""What products are written of, as in `3abc`."""
NOT_UNITS = frozenset({"pi", "sqrt", "inf", "infinity", "oo", "mod", "base", "times", "over"})


class Cursor:
    """The tokens of one answer and the place of the next one."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens, self.at, self.depth = list(tokens), 0, 0
        self.bars = 0
        """How many absolute values, or conditions of a set, are open: a bar then closes."""
        self.systems = 0
        """How many systems of cases are open: "if" then begins the condition of a case."""
        self.money = ""
        """The currency whose sign stood before the number that is being read."""

    def peek(self, ahead: int = 0) -> Token:
        """The token `ahead` places on."""
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else END

    def next(self) -> Token:
        """Take the next token; raises Unreadable at the end."""
        token = self.peek()
        if token.kind == "end":
            raise Unreadable("the end was not expected")
        self.at += 1
        return token

    def take(self, *texts: str) -> bool:
        """Take the next token if it is one of `texts`."""
        token = self.peek()
        if token.text in texts and token.kind != "end":
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Take `text`, or raise Unreadable."""
        if not self.take(text):
            raise Unreadable(f"{text} was expected, not {self.peek().text or 'the end'}")

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """One level down; raises Unreadable below the deepest."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("nested too deeply")
        try:
            yield
        finally:
            self.depth -= 1

    def unit_ahead(self) -> tuple[str, int]:
        """The unit, or name of what is counted, that starts here, and how many tokens it takes; ("", 0) for none."""
        words: list[str] = []
        place, letters = 0, 0
        while len(words) < MOST_WORDS:
            token = self.peek(place)
            if token.kind in ("word", "text") and token.text.lower() not in JOINS and token.text not in CONDITIONS:
                if self._changes_number(token, not words):
                    return "", 0
                if token.kind == "word" and not self._may_be_unit(place, token):
                    return "", 0
                letters += token.kind == "word"
                words.append(token.text)
                place += 1
            elif words and token.text == "^" and self._power_of_unit(place)[1]:
                power, length = self._power_of_unit(place)
                words[-1] += f" ^{power}"
                place += length
            elif words and token.text in ("/", r"\cdot", "-", "'") and self.peek(place + 1).kind in ("word", "text"):
                words.append("per" if token.text == "/" else " ")
                place += 1
            elif words and token.text == ".":
                place += 1
            else:
                break
        phrase = " ".join(" ".join(words).split())
        if not words or not self._ends_item(place) or (letters and not self._is_unit(words, phrase)):
            return "", 0
        return phrase, place

    @staticmethod
    def _changes_number(token: Token, is_first: bool) -> bool:
        """Whether a word beside a number says another number, or takes it back."""
        word = token.text.lower()
        lone = token.kind == "text" and len(word) == 1 and word.isascii() and word != "a" and not unit_of(token.text)
        return (
            word in REFUSED
            or word in NUMBERS
            or (is_first and word in PART_WORDS)
            or lone
            or bool(CHANGED.search(word))
        )

    def _may_be_unit(self, place: int, token: Token) -> bool:
        if (
            (token.text in FUNCTIONS and token.text not in ("min", "sec"))
            or token.text in GREEK
            or token.text in NOT_UNITS
        ):
            return False
        if set(token.text) <= VARIABLES:
            return False
        if len(token.text) > 1 or place:
            return True
        return token.spaced and token.text in LETTERS and self.at > 0 and self.tokens[self.at - 1].kind == "num"

    def _power_of_unit(self, place: int) -> tuple[str, int]:
        """The power of a unit, as `2` or `-1`, and how many tokens it takes from `^` on; ("", 0) for none."""
        length, text = 1, ""
        braces = self.peek(place + 1).text == "{"
        length += braces
        if self.peek(place + length).text == "-":
            text, length = "-", length + 1
        if self.peek(place + length).text not in ("1", "2", "3"):
            return "", 0
        text, length = text + self.peek(place + length).text, length + 1
        if braces and self.peek(place + length).text != "}":
            return "", 0
        return text, length + braces

    def _ends_item(self, place: int) -> bool:
        token = self.peek(place)
        return (
            token.text in CLOSING
            or token.text in RELATIONS
            or token.text.lower() in JOINS
            or token.text in CONDITIONS
            or (token.kind == "num" and self.peek(place + 1).kind in ("word", "text"))
            or (token.text == "(" and self.peek(place + 1).kind in ("word", "text", "num", "cmd"))
        )

    @staticmethod
    def _is_unit(words: Sequence[str], phrase: str) -> bool:
        return unit_of(phrase) is not None or all(
            len(word) >= 3 for word in words if word not in ("per", "of", "in", "a", "an")
        )
