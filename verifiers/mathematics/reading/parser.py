"""Parses a whole answer: lists, tuples, sets, intervals, matrices, relations, quantities with units."""

from __future__ import annotations

from itertools import pairwise

from qwq_rl.verifiers.mathematics.reading.atoms import CURRENCIES
from qwq_rl.verifiers.mathematics.reading.expressions import Expressions
from qwq_rl.verifiers.mathematics.reading.names import CONDITIONS, JOINS, REFUSED, RELATIONS
from qwq_rl.verifiers.mathematics.reading.node import EMPTY, Node, number, symbol, symbols
from qwq_rl.verifiers.mathematics.reading.tokens import Token, Unreadable, tokenize
from qwq_rl.verifiers.mathematics.reading.units import unit_of
from qwq_rl.verifiers.mathematics.reading.words import NUMBERS

MATRICES = frozenset(
    ["matrix", "pmatrix", "bmatrix", "Bmatrix", "array", "smallmatrix", "psmallmatrix", "bsmallmatrix"]
)
SYSTEMS = frozenset({"cases", "dcases", "rcases", "aligned"})
SAID_BEFORE_CONDITIONS = frozenset({"if", "for", "when", "where", "若", "当"})
RESTRICTING = frozenset({"if", "when", "whenever", "unless", "given", "当"})
AS_WANTED = frozenset({"required", "desired", "needed", "wanted", "claimed", "expected", ".", "we", "was", "it", "is"})
WHOLE = frozenset({"integer", "integers", "natural", "z", "整数", "正整数"})
INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})
SAYS_NOTHING = SAID_BEFORE_CONDITIONS | {
    "is",
    "an",
    "a",
    "integer",
    "integers",
    "number",
    "numbers",
    "all",
    "in",
    "case",
}
UNIONS = {r"\cup": "union", r"\cap": "cap", r"\setminus": "minus", r"\backslash": "minus", "U": "union", "∪": "union"}
OPEN_TO_CLOSE = {
    "(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}", r"\rbrace", "}"), r"\lbrace": (r"\rbrace", r"\}"),
    r"\langle": (r"\rangle",)
}  # fmt: skip
AFTER_AMOUNTS = CURRENCIES | {r"\$"}
MOST_ITEMS = 1000
"""The most items of a list; `1, 2, ..., n` is not written out beyond it."""


def parse(text: str, grouped: bool = True) -> Node:
    """The tree of a cleaned answer. Raises Unreadable.

    `grouped`: see `tokenize`.
    """
    reader = Answers(tokenize(text, grouped))
    answer = reader.answer()
    if reader.peek().kind != "end":
        raise Unreadable(f"{reader.peek().text} was not expected")
    return answer


class Answers(Expressions):
    """Parses an answer: a list of items. An item is a relation of sets, lists or expressions, with units."""

    def answer(self) -> Node:
        """Everything up to the end."""
        items, joins = self.items(frozenset({""}))
        if len(items) == 1:
            return items[0]
        return Node("list", tuple(items), "or" if "or" in joins else "and" if "and" in joins else ",")

    def items(self, closing: frozenset[str]) -> tuple[list[Node], set[str]]:
        """The items up to a token of `closing`, which is not taken, and how they were joined."""
        items, joins = [self.item()], set[str]()
        while self.peek().text not in closing and len(items) < MOST_ITEMS:
            if not self._joined(joins):
                break
            if self.peek().text in closing:
                break
            items.append(self.item())
        return _with_modulus(items), joins

    def _joined(self, joins: set[str]) -> bool:
        """Take the tokens that join two items: commas, semicolons, and, or. Add them to `joins`."""
        any_taken = False
        while True:
            token = self.peek()
            if token.text in (",", ";"):
                joins.add(",")
            elif token.text.lower() in JOINS and token.kind != "end":
                joins.add(JOINS[token.text.lower()])
            else:
                return any_taken
            self.next()
            any_taken = True

    def item(self) -> Node:
        """One item. Words before it are skipped; conditions after it become part of it."""
        self.skip_leading()
        # An answer may begin with the sign: `= 5`.
        while self.peek().text in ("=", r"\approx"):
            self.next()
        value = self.relation()
        if self.is_remark():
            self.next()
            conditions, _ = self.items(frozenset({")"}))
            self.expect(")")
            value = Node("such", (value, *conditions), "remark")
        return self._conditioned(value) if self.peek().text in CONDITIONS and not self.systems else value

    def _conditioned(self, value: Node) -> Node:
        """The value with the condition that follows it, such as "where k is an integer".

        A condition that only says what a variable is, is skipped or kept as a remark. A condition that restricts the
        answer or takes it back is refused: raises Unreadable.
        """
        word = self.next().text
        tokens = self._rest_of_item()
        lowered = {token.text.lower() for token in tokens}
        if (
            word in RESTRICTING
            or lowered & (REFUSED | NUMBERS.keys() | {"or"})
            or (word == "as" and not lowered <= AS_WANTED)
        ):
            raise Unreadable("an answer under a condition")
        if any(token.kind == "num" or RELATIONS.get(token.text, "in") != "in" for token in tokens):
            return self._bounded(value)
        self.at += len(tokens)
        # "k is an integer" gives k a set to run over; two answers may call such a variable by different names.
        words = [token.text for token in tokens]
        if lowered & WHOLE:
            number_set = symbol("ℕ" if lowered & {"positive", "natural", "nonnegative", "n", "正整数"} else "ℤ")
            names = tuple(
                symbol(word) for word in words if len(word) == 1 and word.isalpha() and word not in ("Z", "N", "a")
            )
            return Node("such", (value, *(Node("in", (name, number_set)) for name in names)), "remark")
        return value

    def _rest_of_item(self) -> list[Token]:
        """The tokens up to a closing bracket or the end, which are not taken."""
        length = 0
        while self.peek(length).kind != "end" and self.peek(length).text not in (")", "]", r"\}"):
            length += 1
        return self.tokens[self.at : self.at + length]

    def _bounded(self, value: Node) -> Node:
        """`value` with inequalities of its variables as a remark.

        Equations are refused, because they would choose one value of several.
        """
        self.take("all", "any", "every")
        conditions, _ = self.items(frozenset({"", ")", "]", r"\}"}))
        for condition in conditions:
            if condition.kind == "in":
                continue
            if condition.kind != "rel" or not INEQUALITIES.issuperset(condition.value):
                raise Unreadable("a condition that is no inequality")
            if not symbols(condition) or not symbols(condition) <= symbols(value):
                raise Unreadable("a condition of something else")
        return Node("such", (value, *conditions), "remark")

    def relation(self) -> Node:
        """Sides joined by relation signs. A single side is returned as it is."""
        name = self._function_name()
        sides, signs = [name or self.side()], list[str]()
        while self.peek().text in RELATIONS and self.peek().kind != "end":
            signs.append(self._sign())
            if self.peek().kind == "end":
                raise Unreadable("nothing follows a relation sign")
            sides.append(self.side())
        value = _related(sides, signs)
        return self._modulo(value)

    def _sign(self) -> str:
        sign = RELATIONS[self.next().text]
        if sign == "~" and self.peek().text == "=":
            self.next()
        return sign

    def _function_name(self) -> Node | None:
        """`f(x)` before an equals sign, as the name of what follows; else None."""
        first, primes = self.peek(), 0
        # Look ahead without taking tokens, because this may be no name.
        while self.peek(1 + primes).text == "'":
            primes += 1
        opening = self.peek(1 + primes)
        if (
            first.kind not in ("word", "cmd")
            or opening.text != "("
            or not first.text.strip("\\").isalpha()
            or len(first.text) > 3
        ):
            return None
        depth, length = 1, 2 + primes
        while depth and length < 14 and self.peek(length).kind != "end":
            depth += (self.peek(length).text == "(") - (self.peek(length).text == ")")
            length += 1
        if depth or self.peek(length).text not in ("=", r"\approx"):
            return None
        text = "".join(self.peek(ahead).text for ahead in range(length))
        self.at += length
        return Node("named", (), text)

    def side(self) -> Node:
        """A set, a list or an expression, with its unit."""
        self.money = ""
        value = self._ratio()
        while self.peek().text in UNIONS:
            kind = UNIONS[self.next().text]
            value = Node(kind, (value, self._ratio()))
        if self.peek().text in AFTER_AMOUNTS and not self.money:
            self.money = self.next().text.strip("\\")
        if self.money:
            value, self.money = Node("quantity", (value,), self.money), ""
        unit, length = self.unit_ahead()
        if length:
            self.at += length
            value = self._compound(Node("quantity", (value,), unit))
        return self._with_remark(value)

    def _compound(self, value: Node) -> Node:
        """`2 hours 30 minutes` as one amount, in the first unit."""
        start, unit = self.at, unit_of(str(value.value))
        # From here on it may turn out that another item begins: then go back to `start`.
        self.take("and", ",")
        if unit is None or self.peek().kind != "num":
            self.at = start
            return value
        amount = self.power()
        name, length = self.unit_ahead()
        smaller_unit = unit_of(name) if length else None
        if smaller_unit is None or smaller_unit[0] != unit[0] or smaller_unit[1] >= unit[1]:
            self.at = start
            return value
        self.at += length
        part = Node("mul", (amount, number(smaller_unit[1] / unit[1])))
        return Node("quantity", (Node("add", (value.args[0], part)),), value.value)

    def _with_remark(self, value: Node) -> Node:
        """Skip a remark in brackets after a unit."""
        if value.kind == "quantity" and self.peek().text == "(":
            while self.peek().kind != "end" and self.peek().text != ")":
                if self.next().text.lower() in REFUSED:
                    raise Unreadable("a remark that takes something back")
            self.expect(")")
        return value

    def _ratio(self) -> Node:
        parts = [self.sum()]
        while self._ratio_goes_on():
            self.next()
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Node("ratio", tuple(parts))

    def _ratio_goes_on(self) -> bool:
        """Whether `:` follows, or "to" before a number."""
        sign, after = self.peek(), self.peek(1)
        if sign.text == "to" and sign.kind in ("word", "text"):
            return after.kind == "num"
        return sign.text == ":" and not self.bars and after.kind in ("num", "word", "cmd", "op")

    def _modulo(self, value: Node) -> Node:
        """`value` with the modulus that follows it, `\\pmod 7` or `(mod 7)`."""
        if self.peek().text in (r"\pmod", r"\mod"):
            self.next()
            return Node("mod", (value, self.argument()))
        if self.is_modulus():
            self.at += 2
            modulus = self.sum()
            self.expect(")")
            return Node("mod", (value, modulus))
        return value

    def bracketed(self) -> Node:
        """A group, a tuple, an interval or a set."""
        opening = self.next().text
        closing = OPEN_TO_CLOSE[opening]
        if self.take(*closing):
            return EMPTY if opening in (r"\{", r"\lbrace") else Node("tuple", (), "()")
        # In a set a bar begins the conditions, so it must not open an absolute value.
        outer_bars, self.bars = self.bars, 1 if opening in (r"\{", r"\lbrace") else 0
        outer_money = self.money  # `side` clears it for every item inside the brackets
        items, _ = self.items(frozenset({*closing, "|", r"\mid", ":"}))
        if opening in (r"\{", r"\lbrace") and self.take("|", r"\mid", ":"):
            conditions, joins = self.items(frozenset(closing))
            items = [Node("such", (items[0], *conditions), "or" if "or" in joins else "and")]
        self.bars, self.money = outer_bars, outer_money or self.money
        end = self.next().text
        if end not in closing:
            raise Unreadable(f"{end or 'the end'} where {closing[0]} was expected")
        return _grouped(opening, end, items)

    def braced(self) -> Node:
        """What is in braces, as an argument. With commas inside it is a set, as Python writes it."""
        index, depth = self.at + 1, 1
        while depth and index < len(self.tokens):
            text = self.tokens[index].text
            if text == "," and depth == 1:
                self.tokens[self.at] = self.tokens[self.at]._replace(text=r"\{")
                return self.bracketed()
            depth += (text in ("{", r"\{", "(", "[")) - (text in ("}", r"\}", ")", "]"))
            index += 1
        return super().braced()

    def environment(self) -> Node:
        """A matrix or a system of cases or equations; any other environment is refused."""
        self.expect("{")
        name = self.next().text
        self.expect("}")
        if name in SYSTEMS:
            return self._system()
        if name not in MATRICES:
            raise Unreadable(f"the environment {name}")
        if name == "array" and self.peek().text == "{":
            self._raw_argument()  # the alignment of the columns, as in {cc}
        rows: list[list[Node]] = [[]]
        while True:
            if self.peek().text == r"\hline":
                self.next()
                continue
            rows[-1].append(self.side())
            if self.take("&"):
                continue
            # A row separator before `\end` begins no row.
            if self.take(r"\\", r"\cr") and self.peek().text != r"\end":
                rows.append([])
                continue
            self.expect(r"\end")
            break
        self._raw_argument()
        width = len(rows[0])
        if any(len(row) != width for row in rows):
            raise Unreadable("the rows of a matrix differ in length")
        return Node("matrix", tuple(cell for row in rows for cell in row), (len(rows), width))

    def _system(self) -> Node:
        """The rows of `cases`: values with their conditions, or equations that hold together."""
        rows: list[Node] = []
        self.systems += 1
        while not self.take(r"\end"):
            value = self.item()
            while self.peek().text in (",", "&", ";", ".") or self.peek().text.lower() in SAID_BEFORE_CONDITIONS:
                self.next()
            if self.peek().text not in (r"\\", r"\end"):
                value = Node("tuple", (value, self._case()), "()")
            rows.append(value)
            self.take(r"\\", r"\cr")
        self.systems -= 1
        self._raw_argument()
        is_piecewise = all(row.kind == "tuple" and row.value == "()" for row in rows)
        return Node("cases", tuple(rows)) if is_piecewise else Node("list", tuple(rows), "and")

    def _case(self) -> Node:
        """The condition of one case."""
        if self.take("otherwise", "else"):
            return symbol("otherwise")
        words = self._condition_words()
        if words:
            return symbol(words)
        condition = self.item()
        while self.take(",", ".", ";"):
            pass
        return condition

    def _condition_words(self) -> str:
        """The sorted words of a condition such as "n is even", without filler words; "" for a formula."""
        length, words = 0, set[str]()
        while self.peek(length).text not in (r"\\", r"\end", ""):
            token = self.peek(length)
            if token.kind in ("word", "text"):
                words.add(token.text.lower() if token.kind == "text" else token.text)
            elif token.text not in (",", ".", ";"):
                return ""
            length += 1
        if not any(len(word) > 2 for word in words - SAYS_NOTHING):
            return ""
        self.at += length
        return " ".join(sorted(words - SAYS_NOTHING)) if not words & {"otherwise", "else"} else "otherwise"


def _written_out(items: list[Node]) -> list[Node]:
    """`1, 2, ..., 10` with all its numbers.

    The step comes from the numbers before the dots, at least two. Exactly one number must be after the dots.
    """
    dot_places = [place for place, item in enumerate(items) if item == symbol("…")]
    if (
        len(dot_places) != 1
        or dot_places[0] < 2
        or dot_places[0] + 2 != len(items)
        or any(part.kind != "num" for part in items if part != items[dot_places[0]])
    ):
        return items
    values = [item.value for item in items if item.kind == "num"]
    step = values[1] - values[0]
    steps = [later - earlier for earlier, later in pairwise(values[:-1])]
    if step == 0 or any(difference != step for difference in steps) or (values[-1] - values[0]) % step:
        return items
    count = int((values[-1] - values[0]) / step)
    return [number(values[0] + step * place) for place in range(count + 1)] if 0 < count < MOST_ITEMS else items


def _grouped(opening: str, end: str, items: list[Node]) -> Node:
    if opening in (r"\{", r"\lbrace"):
        if len(items) == 1 and items[0].kind == "such":
            return items[0]
        return Node("set", tuple(_written_out(items)))
    if len(items) == 1:
        if (opening, end) in (("(", ")"), ("[", "]")):
            return items[0]
        raise Unreadable("brackets that do not match")
    # Angle brackets hold a vector, so they count as round ones.
    brackets = "()" if opening == r"\langle" else opening + end
    return Node("tuple", tuple(items), brackets)


def _with_modulus(items: list[Node]) -> list[Node]:
    """`n \\equiv 2, 3 \\pmod 5`: the modulus after the last item belongs to all items."""
    if len(items) < 2 or items[-1].kind != "mod" or items[0].kind != "rel" or items[0].value[-1] != "==":
        return items
    return [item if item.kind == "mod" else Node("mod", (item, items[-1].args[1])) for item in items]


def _related(sides: list[Node], signs: list[str]) -> Node:
    if not signs:
        return sides[0]
    if signs == ["in"]:
        return Node("in", tuple(sides))
    return Node("rel", tuple(sides), tuple(signs))
