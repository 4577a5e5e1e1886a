"""Parses the functions of an expression: their powers, bases and arguments, with and without brackets."""

from __future__ import annotations

from abc import ABC, abstractmethod

from qwq_rl.verifiers.mathematics.reading.cursor import Cursor
from qwq_rl.verifiers.mathematics.reading.names import FUNCTIONS, INVERTIBLE, SAME_FUNCTION
from qwq_rl.verifiers.mathematics.reading.node import Node, number
from qwq_rl.verifiers.mathematics.reading.tokens import Token, Unreadable

OF_SEVERAL = frozenset({"max", "min", "gcd", "lcm"})


class Functions(Cursor, ABC):
    """Parses functions and their arguments. The subclasses parse the parts of the arguments."""

    @abstractmethod
    def sum(self) -> Node:
        """A sum; parsed by `Expressions`."""

    @abstractmethod
    def power(self) -> Node:
        """A power; parsed by `Expressions`."""

    @abstractmethod
    def starts_factor(self) -> bool:
        """Whether a factor follows; decided by `Expressions`."""

    @abstractmethod
    def bracketed(self) -> Node:
        """What is in the brackets that open here; parsed by `Answers`."""

    @abstractmethod
    def atom(self) -> Node:
        """One atom; parsed by `Atoms`."""

    @abstractmethod
    def braced(self) -> Node:
        """What is in braces; parsed by `Atoms`."""

    def function(self, name: str) -> Node:
        """The function `name` with its power, its base and its arguments."""
        name = SAME_FUNCTION.get(name, name)
        exponent, base = None, None
        for _ in range(2):  # a power and a base, in either order
            if self.peek().text == "^":
                self.next()
                exponent = self.braced() if self.peek().text == "{" else self._signed_atom()
            elif self.peek().text == "_":
                self.next()
                base = self.braced() if self.peek().text == "{" else self._one_digit_or_atom()
        if exponent == Node("neg", (number(1),)) and name in INVERTIBLE:
            name, exponent = f"arc{name}", None
        value = _applied(name, base, self._arguments())
        return value if exponent is None else Node("pow", (value, exponent))

    def _signed_atom(self) -> Node:
        return Node("neg", (self._one_digit_or_atom(),)) if self.take("-") else self._one_digit_or_atom()

    def _one_digit_or_atom(self) -> Node:
        """A subscript or power without braces, of which LaTeX takes one digit.

        `\\log_28` is the logarithm of 8 to base 2.
        """
        token = self.peek()
        if token.kind == "num" and token.text.isdigit() and len(token.text) > 1 and self.peek(1).kind != "word":
            # If an argument follows, all digits are the base: `\log_10 x`. Else the later digits are the argument.
            self.at += 1
            if self._ends_argument():
                self.at -= 1
                self.tokens[self.at : self.at + 1] = [
                    Token("num", token.text[0], False),
                    Token("num", token.text[1:], False),
                ]
            else:
                self.at -= 1
        return self.atom()

    def _ends_argument(self) -> bool:
        return not self.starts_factor() and self.peek().text not in ("(", "{")

    def _arguments(self) -> tuple[Node, ...]:
        """The arguments of a function, with or without brackets."""
        if self.peek().text in ("(", "[", r"\{"):
            inside = self.bracketed()
            parts = inside.args if inside.kind in ("tuple", "set") else (inside,)
            return parts
        if self.peek().text == "{":
            return (self.braced(),)
        if self.peek().text == "-":
            self.next()
            return (Node("neg", (self._arguments()[0],)),)
        factors = [self.power()]
        # `\sin 2x` takes all factors, but `\sin x \cos x` is a product of two functions.
        while self.starts_factor() and not self._function_follows():
            factors.append(self.power())
        value = factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
        has_pi = value == Node("const", (), "pi") or (value.kind == "mul" and value.args[-1] == Node("const", (), "pi"))
        # `\sin \pi/6` is meant as the sine of the whole fraction.
        if has_pi and self.peek().text == "/" and self.peek(1).kind == "num":
            self.next()
            return (Node("div", (value, self.power())),)
        return (value,)

    def _function_follows(self) -> bool:
        token = self.peek()
        return (token.text.removeprefix("\\") in FUNCTIONS and token.kind in ("word", "cmd")) or token.text in (
            "(",
            "[",
        )


def _applied(name: str, base: Node | None, arguments: tuple[Node, ...]) -> Node:
    if (
        name not in OF_SEVERAL
        and len(arguments) != (2 if name == "binom" else 1)
        and (name, len(arguments)) != ("log", 2)
    ):
        raise Unreadable(f"{name} of {len(arguments)} arguments")
    if name in ("sqrt", "cbrt"):
        return Node("root", (arguments[0], number(2 if name == "sqrt" else 3)))
    if name == "exp":
        return Node("pow", (Node("const", (), "e"), arguments[0]))
    if name == "abs":
        return Node("abs", arguments)
    if name == "factorial":
        return Node("fact", arguments)
    if name in ("lg", "log10", "log2"):
        return Node("call", (arguments[0], number(2 if name == "log2" else 10)), "log")
    if name == "log" and base is not None:
        return Node("call", (arguments[0], base), "log")
    if name == "log" and len(arguments) == 2:
        return Node("call", arguments, "log")
    if base is not None:
        raise Unreadable(f"a subscript of {name}")
    return Node("call", arguments, name)
