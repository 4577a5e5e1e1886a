"""Parses the smallest parts of an expression: numbers, names, functions, fractions, roots, bars and figures."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction

from qwq_rl.verifiers.mathematics.reading.functions import Functions
from qwq_rl.verifiers.mathematics.reading.names import (
    BINOMIALS,
    CONSTANTS,
    DECORATIONS,
    FIGURES,
    FRACTIONS,
    FUNCTIONS,
    GREEK,
    REFUSED,
    UNWORKED,
)
from qwq_rl.verifiers.mathematics.reading.node import EMPTY, TWO, Node, number, symbol
from qwq_rl.verifiers.mathematics.reading.tokens import Token, Unreadable

MOST_DIGITS = 2000
LARGEST_SCALE = 400
"""The largest power of ten of a number such as 1e5."""
CURRENCIES = frozenset("€£¥₹")
SETS = {"R": "ℝ", "Z": "ℤ", "N": "ℕ", "Q": "ℚ", "C": "ℂ"}
NAMED_SETS = {r"\R": "ℝ", r"\Z": "ℤ", r"\N": "ℕ", r"\Q": "ℚ", r"\C": "ℂ", r"\Reals": "ℝ"}
OPENING = frozenset(
    {r"\{", r"\lbrace", r"\lvert", r"\lfloor", r"\lceil", r"\langle", r"\begin", r"\|", r"\sqrt", r"\$"}
)
DEGREE = frozenset({r"\circ", r"\degree", r"\deg"})
OTHERS = frozenset(
    {
        r"\emptyset",
        r"\varnothing",
        r"\ldots",
        r"\dots",
        r"\cdots",
        r"\dotsc",
        r"\mathbb",
        r"\infty",
        r"\imath",
        r"\partial",
    }
)


class Atoms(Functions):
    """Parses atoms and the signs after them. The subclasses parse sums (`sum`) and whole items (`item`)."""

    def is_atom_command(self, text: str) -> bool:
        """Whether a LaTeX command begins an atom."""
        name = text[1:]
        if name in FUNCTIONS or name in GREEK or name in CONSTANTS or text in NAMED_SETS:
            return True
        return any(text in group for group in (FRACTIONS, BINOMIALS, DECORATIONS, FIGURES, OPENING, UNWORKED, OTHERS))

    def atom(self) -> Node:
        """One atom; raises Unreadable."""
        token = self.peek()
        if token.kind == "num":
            return self.number()
        if token.kind in ("word", "cmd"):
            with self.deeper():
                return self.word() if token.kind == "word" else self.command()
        if token.text in ("(", "["):
            return self.bracketed()
        if token.text == "{":
            return self.braced()
        if token.text == "|":
            return self.absolute("|", "|")
        if token.text in CURRENCIES:
            self.money = self.next().text
            return self.postfix(self.atom())
        raise Unreadable(f"{token.text or 'the end'} was not expected")

    def number(self) -> Node:
        """A number; a mixed number if a proper fraction follows."""
        token = self.next()
        if len(token.text) > MOST_DIGITS:
            raise Unreadable(f"a number of {len(token.text)} digits")
        value = _decimal(token.text)
        if not isinstance(value, int):
            return Node("dec", (), value)
        start = self.at
        fraction = self._proper_fraction()
        if fraction is not None:
            return Node("num", (), value + fraction)
        self.at = start  # what follows is another factor
        return number(value)

    def _proper_fraction(self) -> Fraction | None:
        """The fraction of a mixed number, `\\frac{1}{2}` or ` 1/2`, or None. After None the caller must go back."""
        if self.peek().text in FRACTIONS:
            node = self.command()
            if (
                node.kind == "div"
                and all(part.kind == "num" for part in node.args)
                and node.args[0].value < node.args[1].value
            ):
                return Fraction(node.args[0].value / node.args[1].value)
            return None
        over, sign, under = self.peek(), self.peek(1), self.peek(2)
        is_plain = over.spaced and sign.text == "/" and not sign.spaced and over.text.isdigit() and under.text.isdigit()
        if not is_plain or not 0 < int(over.text) < int(under.text):
            return None
        self.at += 3
        return Fraction(int(over.text), int(under.text))

    def word(self) -> Node:
        """A function, a constant, or variables written together."""
        token = self.next()
        name = token.text
        if name.lower() in REFUSED:
            raise Unreadable(f"the word {name}")
        if name in FUNCTIONS:
            return self.function(name)
        if name in CONSTANTS:
            return Node("const", (), CONSTANTS[name])
        if name == "Gamma" and self.peek().text == "(":
            return self.function(name)
        if name in GREEK:
            return self.subscripted(name)
        if name == "C" and self.peek().text == "(" and self.peek(2).text == ",":
            return self.function("binom")
        if len(name) == 1:
            return self.subscripted(name)
        self._split(token)
        return self.word()

    def _split(self, token: Token) -> None:
        """Replace a word by its parts: `sinx` by a function and its argument, `xy` by two variables."""
        name = token.text
        function = next(
            (name[:end] for end in range(len(name) - 1, 1, -1) if name[:end] in FUNCTIONS or name[:end] == "pi"), ""
        )
        if function and len(name) - len(function) <= 2:
            parts = [function, name[len(function) :]]
        elif len(name) <= 3 or (len(name) <= 6 and set(name) <= set("abcdxyzwnmkpqrst")):
            parts = list(name)  # short, or of the usual letters: a product of variables
        else:
            raise Unreadable(f"the word {name}")
        # Parsing goes on from the first of the new tokens.
        self.at -= 1
        self.tokens[self.at : self.at + 1] = [
            Token("word", part, token.spaced if index == 0 else False) for index, part in enumerate(parts)
        ]

    def subscripted(self, name: str) -> Node:
        """A variable with its subscript and primes."""
        if self.peek().text == "_":
            start = self.at
            self.next()
            if name == "C":
                binomial = self._chinese_binomial()
                if binomial is not None:
                    return binomial
                self.at = start + 1  # no `^`: a variable C with a subscript
            name += "_" + self._raw_argument()
        while self.take("'"):
            name += "'"
        return symbol(name)

    def _chinese_binomial(self) -> Node | None:
        """`C_n^k`, the binomial coefficient as it is written in China, or None."""
        total = self.argument()
        if self.peek().text != "^":
            return None
        self.next()
        return Node("call", (total, self.argument()), "binom")

    def _raw_argument(self) -> str:
        """The text of one token, or of what is in braces."""
        if not self.take("{"):
            return self.next().text
        depth, text = 1, ""
        while depth:
            token = self.next()
            if token.kind == "end":
                raise Unreadable("a brace never closes")
            depth += (token.text == "{") - (token.text == "}")
            text += token.text if depth else ""
        return text

    def command(self) -> Node:
        """The atom that a LaTeX command begins."""
        token = self.next()
        text, name = token.text, token.text[1:]
        if text in FRACTIONS:
            return Node("div", (self.argument(), self.argument()))
        if text == r"\sqrt":
            return self._root()
        if text in BINOMIALS:
            return Node("call", (self.argument(), self.argument()), "binom")
        if name in FUNCTIONS:
            return self.function(name)
        if name in CONSTANTS and len(name) > 1:
            return Node("const", (), CONSTANTS[name])
        if name == "Gamma" and self.peek().text == "(":
            return self.function(name)
        if name in GREEK:
            return self.subscripted(name)
        if text in (r"\{", r"\lbrace", r"\langle"):
            self.at -= 1
            return self.bracketed()
        if text in NAMED_SETS:
            return self._named_set(NAMED_SETS[text])
        if text == r"\mathbb":
            return self._named_set(SETS.get(self._raw_argument(), ""))
        if text in (r"\emptyset", r"\varnothing"):
            return EMPTY
        return self._rare_command(text)

    def _rare_command(self, text: str) -> Node:
        if text in (r"\lvert", r"\|"):
            return self.absolute(text, {r"\lvert": r"\rvert", r"\|": r"\|"}[text], taken=True)
        if text in (r"\lfloor", r"\lceil"):
            name = text[2:]
            inside = self.sum()
            self.expect({"floor": r"\rfloor", "ceil": r"\rceil"}[name])
            return Node("call", (inside,), name)
        if text == r"\begin":
            return self.environment()
        if text == r"\$":  # the sign before an amount
            self.money = "$"
            return self.postfix(self.atom())
        if text in UNWORKED:
            return self._kept_as_written(text)
        if text in FIGURES:
            has_name = self.peek().kind == "word" or self.peek().text == "{"
            return symbol(text[1:] + " " + (self._raw_argument() if has_name else ""))
        if text in DECORATIONS:
            return symbol(f"{text[1:]} {self._raw_argument()}")
        if text in (r"\ldots", r"\dots", r"\cdots", r"\dotsc", r"\partial"):
            return symbol("…")
        if text == r"\imath":
            return Node("const", (), "i")
        raise Unreadable(f"the command {text}")

    @abstractmethod
    def environment(self) -> Node:
        """A matrix or another environment; parsed by `Answers`."""

    def _named_set(self, name: str) -> Node:
        if not name:
            raise Unreadable("an unknown set")
        if self.peek().text in ("^", "_"):
            self.next()
            name += self._raw_argument()
        return symbol(name)

    def _root(self) -> Node:
        index = TWO
        if self.peek().text == "[":
            self.next()
            index = self.sum()
            self.expect("]")
        if self.peek().text == "{":
            return Node("root", (self.braced(), index))
        return Node("root", (self.atom(), index))

    def _kept_as_written(self, text: str) -> Node:
        """A sum, product, integral or limit, kept as it is written."""
        parts: list[Node] = []
        while self.peek().text in ("_", "^"):
            script = self.next().text
            parts.append(symbol(script + self._raw_argument()))
        factors = [self.power()]
        while self.starts_factor():
            factors.append(self.power())
        return Node("opaque", (*parts, *factors), text)

    def argument(self) -> Node:
        """One argument of a command: in braces, or a single digit or atom."""
        if self.peek().text == "{":
            return self.braced()
        token = self.peek()
        if token.kind == "num" and len(token.text) > 1 and token.text.isdigit():
            # LaTeX takes one digit as an argument without braces: `\frac12` is 1/2.
            self.tokens[self.at] = Token("num", token.text[1:], False)
            return number(int(token.text[0]))
        return self.atom()

    def braced(self) -> Node:
        """A sum in braces, or `n \\choose k` or `a \\over b`."""
        self.expect("{")
        # Bars inside the braces pair up with each other, not with those outside.
        outer_bars, self.bars = self.bars, 0
        value = self.sum()
        if self.take(r"\choose"):
            value = Node("call", (value, self.sum()), "binom")
        elif self.take(r"\over"):
            value = Node("div", (value, self.sum()))
        self.bars = outer_bars
        self.expect("}")
        return value

    def absolute(self, opening: str, closing: str, taken: bool = False) -> Node:
        """An absolute value, or a length, between bars."""
        if not taken:
            self.expect(opening)
        self.bars += 1
        value = self.sum()
        self.bars -= 1
        self.expect(closing)
        return Node("abs", (value,))

    def postfix(self, value: Node) -> Node:
        """`value` with what follows it: factorials, percent and degree signs, a base."""
        while True:
            token = self.peek()
            # `n != 5` is a relation, not a factorial.
            if token.text == "!" and self.peek(1).text != "=":
                self.next()
                value = Node("call", (value,), "double factorial") if self.take("!") else Node("fact", (value,))
            elif token.text in ("%", r"\%"):
                self.next()
                value = Node("percent", (value,))
            elif self._degree_length():
                self.at += self._degree_length()
                value = Node("degree", (value,))
            elif token.text == "_" and value.kind == "num":
                self.next()
                value = Node("base", (), (str(value.value), self._base()))
            else:
                return value

    def _degree_length(self) -> int:
        """How many tokens a degree sign takes here, or 0 if there is none."""
        token, after = self.peek(), self.peek(1)
        if token.text in DEGREE:
            return 1
        if token.text != "^":
            return 0
        if after.text in DEGREE:
            return 2
        return 4 if after.text == "{" and self.peek(2).text in DEGREE and self.peek(3).text == "}" else 0

    def _base(self) -> int:
        text = self._raw_argument().lower().removeprefix("(").removesuffix(")")
        names = {
            "two": 2,
            "three": 3,
            "four": 4,
            "five": 5,
            "six": 6,
            "seven": 7,
            "eight": 8,
            "nine": 9,
            "ten": 10,
            "twelve": 12,
            "sixteen": 16,
        }
        base = names.get(text) or (int(text) if text.isdigit() and len(text) < 3 else 0)
        if base < 2:
            raise Unreadable(f"the base {text}")
        return base


def _decimal(text: str) -> int | Fraction:
    """The value of a number token. Raises Unreadable if it is too large to be written out."""
    if text.isdigit():
        return int(text)
    mantissa, _, scale = text.lower().partition("e")
    if scale and abs(int(scale)) > LARGEST_SCALE:
        raise Unreadable(f"ten to the power {scale}")
    value = Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(scale or 0)
    # 1e5 is a whole number, but 1.0 stays a decimal.
    if "." not in mantissa.rstrip(".") and value.denominator == 1:
        return int(value)
    return value
