"""Parses arithmetic and algebra: sums, products and powers, in LaTeX and in plain text alike."""

from __future__ import annotations

from fractions import Fraction

from qwq_rl.verifiers.mathematics.reading.atoms import Atoms
from qwq_rl.verifiers.mathematics.reading.names import (
    CONDITIONS,
    COPULAS,
    JOINS,
    LEADING,
    OVER,
    REFUSED,
    RELATIONS,
    TIMES,
)
from qwq_rl.verifiers.mathematics.reading.node import Node, number, symbol
from qwq_rl.verifiers.mathematics.reading.words import SCALES

SIGNS = {"+": "+", "-": "-", r"\pm": "±", r"\mp": "∓"}


class Expressions(Atoms):
    """Parses sums of products of powers. `Atoms` parses the atoms."""

    def sum(self) -> Node:
        """Terms joined by plus, minus and plus-minus."""
        with self.deeper():
            value = self.product()
            terms: list[Node] = [value]
            while self.peek().text in SIGNS and self.peek().kind in ("op", "cmd"):
                sign = SIGNS[self.next().text]
                term = self.product()
                if sign in "±∓":  # all terms so far become the first part of one node
                    terms = [Node("pm", (_added(terms), term), "+" if sign == "±" else "-")]
                else:
                    terms.append(term if sign == "+" else Node("neg", (term,)))
            return _added(terms)

    def product(self) -> Node:
        """Factors joined by signs of multiplication and division, or by nothing."""
        factors = [self.signed()]
        while True:
            token = self.peek()
            if token.text in TIMES:
                self.next()
                factors.append(self.signed())
            elif token.text in OVER:
                self.next()
                factors = [Node("div", (_multiplied(factors), self.signed()))]
            elif token.text in (r"\bmod", "mod"):
                self.next()
                factors = [Node("mod", (_multiplied(factors), self.signed()))]
            elif token.kind in ("word", "text") and token.text.lower() in SCALES and factors:
                self.next()
                factors.append(number(SCALES[token.text.lower()]))
            elif self.starts_factor():
                factors.append(self.power())
            else:
                return _multiplied(factors)

    def signed(self) -> Node:
        """A factor with its signs."""
        negative = False
        while self.peek().text in ("+", "-") and self.peek().kind == "op":
            negative ^= self.next().text == "-"
        if self.peek().text in (r"\pm", r"\mp"):
            sign = "+" if self.next().text == r"\pm" else "-"
            value = Node("pm", (self.power(),), sign)
        else:
            value = self.power()
        return Node("neg", (value,)) if negative else value

    def power(self) -> Node:
        """An atom with the signs after it, and its powers."""
        base = self.postfix(self.atom())
        while self.peek().text in ("^", "**") and self.peek().kind == "op":
            self.next()
            base = self.postfix(_raised(base, self.exponent()))
        return base

    def exponent(self) -> Node:
        """What follows `^`: in braces, or one signed atom. `2^3^2` is 2^(3^2)."""
        with self.deeper():
            if self.peek().text == "{":
                return self.braced()
            if self.take("-"):
                return Node("neg", (self.exponent(),))
            base = self.atom()
            if self.take("^", "**"):
                return Node("pow", (base, self.exponent()))
            return base

    def starts_factor(self) -> bool:
        """Whether what comes next is multiplied with what is before it, without a sign between them."""
        token = self.peek()
        previous = self.tokens[self.at - 1] if self.at else token
        if token.kind == "num":
            return previous.kind not in ("num",) and previous.text not in (".",)
        if token.kind == "word":
            if token.text in CONDITIONS or token.text == "to" or token.text.lower() in JOINS or token.text in RELATIONS:
                return False
            # `5 cm` is a quantity, not a product of 5, c and m.
            return not self.unit_ahead()[1]
        if token.kind == "op":
            return (token.text in ("(", "[", "{") and not self.is_modulus() and not self.is_remark()) or (
                token.text == "|" and not self.bars
            )
        if token.text == r"\$":
            return self.peek(1).kind == "num"
        return token.kind == "cmd" and self.is_atom_command(token.text)

    def is_modulus(self) -> bool:
        """Whether `(mod` follows."""
        return self.peek().text == "(" and self.peek(1).text in ("mod", r"\bmod", r"\mod")

    def is_remark(self) -> bool:
        """Whether a condition in brackets follows: `(k \\in \\mathbb{Z})`, `(x > 0)`."""
        name, sign = self.peek(1), self.peek(2)
        if self.peek().text != "(" or name.kind not in ("word", "cmd") or len(name.text.strip("\\")) > 7:
            return False
        return sign.text in RELATIONS and sign.kind in ("op", "cmd")

    def skip_leading(self) -> None:
        """Skip words such as "the answer is", and sentences up to their "is"."""
        length = self._copula_length()
        self.at += length
        while (self.peek().kind in ("word", "text") and self.peek().text.lower() in LEADING) or self.peek().text in (
            ":",
            '"',
        ):
            # A single letter outside of `\text` is a variable.
            if self.peek().kind == "word" and len(self.peek().text) == 1:
                break
            self.next()

    def _copula_length(self) -> int:
        """How many tokens a beginning such as "Tom is" takes; all of them must be words of a text."""
        for ahead in range(8):
            token = self.peek(ahead)
            if token.kind != "text" or token.text.lower() in REFUSED:
                return 0
            if token.text.lower() in COPULAS:
                return ahead + 1
        return 0


def _raised(base: Node, exponent: Node) -> Node:
    """A power. A vector or a matrix to the power T is transposed."""
    if exponent not in (symbol("T"), symbol("top")) or base.kind not in ("tuple", "matrix"):
        return Node("pow", (base, exponent))
    if base.kind == "tuple":
        return base  # rows and columns are not told apart in a vector
    rows, columns = base.value
    cells = tuple(base.args[row * columns + column] for column in range(columns) for row in range(rows))
    return Node("matrix", cells, (columns, rows))


def _added(terms: list[Node]) -> Node:
    return terms[0] if len(terms) == 1 else Node("add", tuple(terms))


def _multiplied(factors: list[Node]) -> Node:
    if len(factors) == 2 and all(factor.kind in ("num", "dec") for factor in factors) and factors[0].kind == "dec":
        # `2.5 million` is one decimal number.
        product: Fraction = factors[0].value * factors[1].value
        return Node("dec", (), product)
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
