"""Exact values of short arithmetic texts, `-3\\frac{1}{2}`, `2^{10}`, `1,234.5e3`, as fractions; no names, no roots."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+")
EXPONENT = re.compile(r"[eE]([+-]?\d{1,3})(?![\d.])")
MOST_BITS = 4096
"""Of a power's numerator or denominator; larger ones are not worked out."""
DEEPEST = 40


class NotExact(Exception):
    """The text is no arithmetic, or too large to work out."""


def evaluate(text: str) -> tuple[Fraction, bool]:
    """The value of `text`, and whether it was written with a decimal point; raises NotExact.

    Knows + - * / ^ ** and brackets, `\\frac`, thousands separators, scientific notation and mixed numbers.
    """
    reader = _Reader(text)
    value = reader.sum(0)
    if reader.peek():
        raise NotExact(f"unread: {reader.text[reader.at :]}")
    return value, reader.decimal


class _Reader:
    """A recursive descent over the characters; `at` is the next one to read."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.decimal = text, 0, False

    def peek(self) -> str:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, token: str) -> bool:
        self.peek()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-") and self.peek():
            value = value + self.product(depth) if self.take("+") else self._minus(value, depth)
        return _bounded(value)

    def _minus(self, value: Fraction, depth: int) -> Fraction:
        self.at += 1
        return value - self.product(depth)

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while True:
            if self.take("*"):
                value = _bounded(value * self.signed(depth))
            elif self.take("/"):
                value = _divided(value, self.signed(depth))
            elif self.peek() == "(":
                value = _bounded(value * self.power(depth))
            else:
                return value

    def signed(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise NotExact("nested too deeply")
        if self.take("-"):
            return -self.signed(depth + 1)
        return self.signed(depth + 1) if self.take("+") else self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth + 1)
        if not (self.take("^") or self.take("**")):
            return base
        exponent = self.bracketed(depth) if self.peek() in ("{", "(") else self.exponent()
        if exponent.denominator != 1:
            raise NotExact("a root")
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent) > MOST_BITS or (base == 0 and exponent <= 0):
            raise NotExact("a power too large to work out")
        return base ** int(exponent)

    def exponent(self) -> Fraction:
        """An unbraced exponent: LaTeX takes one digit, people write more."""
        sign = -1 if self.take("-") else 1
        match = re.compile(r"\d{1,4}").match(self.text, self.at)
        if not match:
            raise NotExact("no exponent")
        self.at = match.end()
        return Fraction(sign * int(match.group()))

    def atom(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise NotExact("nested too deeply")
        if self.peek() in ("(", "{"):
            return self.bracketed(depth)
        if self.take(r"\frac"):
            return _divided(self.argument(depth), self.argument(depth))
        return self.number(depth)

    def bracketed(self, depth: int) -> Fraction:
        close = {"(": ")", "{": "}"}[self.peek()]
        self.at += 1
        value = self.sum(depth + 1)
        if not self.take(close):
            raise NotExact(f"no closing {close}")
        return value

    def argument(self, depth: int) -> Fraction:
        """One argument of `\\frac`: a braced sum or a single digit."""
        if self.peek() == "{":
            return self.bracketed(depth)
        digit = self.peek()
        if not (digit.isascii() and digit.isdigit()):
            raise NotExact("no argument")
        self.at += 1
        return Fraction(int(digit))

    def number(self, depth: int) -> Fraction:
        self.peek()
        match = NUMBER.match(self.text, self.at)
        if not match or not match.group().isascii():
            raise NotExact("no number")
        self.at = match.end()
        written = match.group().replace(",", "")
        scale = EXPONENT.match(self.text, self.at)
        if scale:
            self.at = scale.end()
        self.decimal = self.decimal or "." in written
        value = Fraction(written.rstrip(".")) * Fraction(10) ** int(scale.group(1) if scale else 0)
        whole = "." not in written and not scale and self.text.startswith(r"\frac", self.at + (self.peek() == " "))
        return value + self.atom(depth + 1) if whole else value


def _divided(over: Fraction, under: Fraction) -> Fraction:
    if under == 0:
        raise NotExact("a division by zero")
    return _bounded(over / under)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise NotExact("too large to work out")
    return value
