"""Whether two readings are the same answer: lists, tuples, sets, matrices, relations, and the amounts in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwq_rl.verifiers.mathematics.comparing.identity import same_expression
from qwq_rl.verifiers.mathematics.comparing.quantities import Percent, same_amount, same_ratio, same_residue_class
from qwq_rl.verifiers.mathematics.comparing.real_sets import is_certain, same_reals
from qwq_rl.verifiers.mathematics.comparing.relations import same_relation
from qwq_rl.verifiers.mathematics.comparing.shapes import (
    BOUND,
    Named,
    items_of,
    named,
    parameters,
    replaced,
    same_number_sets,
    unconditioned,
)
from qwq_rl.verifiers.mathematics.reading.node import INFINITY, ONE, ZERO, Node, contains, every, symbol, symbols

CONSTANTS = frozenset({"C", "c", "K", "k", "A", "B", "C_1", "c_1", "C_2", "c_2"})
"""Names that people give to constants of integration."""
UNKNOWNS = frozenset({"x", "y", "z"})
"""Names that people give to what is looked for, not to an integer that runs."""
NUMBERS = frozenset({"num", "dec"})
UNIT_VECTORS = {"hat i": 0, "hat j": 1, "hat k": 2}
MOST_ITEMS = 40
"""Of a list that are compared each with each; longer ones must be written alike."""


@dataclass(frozen=True)
class Rules:
    """What is let pass."""

    tolerance: float = 1e-6
    """Relative, between a decimal and a number that no decimal writes in full."""
    percent: Percent = "lenient"
    """Whether `50%` may be written 50, or only 0.5."""


def same(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Whether `answer` says what `gold` says; None where this cannot be told here."""
    if answer == gold:
        return True
    if not same_number_sets(answer, gold):
        return False
    one, other = unconditioned(_with_parameters_of(answer, gold)), unconditioned(gold)
    if "such" in (one.kind, other.kind):
        return _same_with_remarks(one, other, rules)
    return _same(_renamed(one, other), other, rules)


def _with_parameters_of(one: Node, other: Node) -> Node:
    """`one` with its real parameters called as those of `other`, in their order."""
    mine, theirs = parameters(one), parameters(other)
    if not mine or len(mine) != len(theirs) or symbols(one) & set(theirs) - set(mine):
        return one
    return replaced(one, {name: symbol(wanted) for name, wanted in zip(mine, theirs, strict=True)})


def _same_with_remarks(one: Node, other: Node, rules: Rules) -> bool | None:
    """Answers with a condition in brackets after them, which only one of them may leave out."""
    if one.kind == other.kind == "such" and one.value == other.value == "remark":
        return _all([_same(a, b, rules) for a, b in zip(one.args, other.args, strict=False)])
    left = one.args[0] if one.value == "remark" and one.kind == "such" else one
    right = other.args[0] if other.value == "remark" and other.kind == "such" else other
    return _same(_renamed(left, right), right, rules)


def _same(one: Node, other: Node, rules: Rules) -> bool | None:
    if one == other:
        return True
    left, right = named(one), named(other)
    if not left.consistent:
        return False
    found = _same_relations(one, other, left, right, rules)
    if found is not None:
        return found
    if _names_clash(left, right):
        return False
    return _same_value(left.value, right.value, rules)


def _same_relations(one: Node, other: Node, left: Named, right: Named, rules: Rules) -> bool | None:
    """Two equations of which at least one is no mere assignment."""
    if one.kind != "rel" or other.kind != "rel" or (left.name and right.name and left.name == right.name):
        return None
    if left.name is not None and right.name is not None:
        if not symbols(left.value) or not symbols(right.value):
            return None
        return True if same_relation(one, other) else None
    if is_certain(one) or is_certain(other):
        return None
    return same_relation(one, other)


def _names_clash(left: Named, right: Named) -> bool:
    if left.name is not None and right.name is not None and left.name.kind == right.name.kind == "ratio":
        return left.name != right.name
    if left.name is None or right.name is None or left.name.kind != "sym" or right.name.kind != "sym":
        return False
    one, other = (str(name.value).split("_")[0].rstrip("'") for name in (left.name, right.name))
    return one != other and len(one) == 1 and len(other) == 1


def _renamed(one: Node, other: Node) -> Node:
    """`one` with the constant of integration, or the integer that runs, called as `other` calls it."""
    mine, theirs = symbols(one) - symbols(other), symbols(other) - symbols(one)
    if len(mine) != 1 or len(theirs) != 1:
        return one
    name, wanted = next(iter(mine)), next(iter(theirs))
    bound = (name.startswith(BOUND) or wanted.startswith(BOUND)) and not {name, wanted} & UNKNOWNS
    if bound or ({name, wanted} <= CONSTANTS and len(symbols(one)) > 1):
        return replaced(one, {name: symbol(wanted)})
    return one


def _same_value(one: Node, other: Node, rules: Rules) -> bool | None:
    if one == other:
        return True
    if one.kind in NUMBERS and other.kind in NUMBERS:
        return same_expression(one, other, rules.tolerance)
    one, other = _from_unit_vectors(one, other), _from_unit_vectors(other, one)
    if contains(one, "matrix") or contains(other, "matrix"):
        return _same_matrix(one, other, rules)
    if "cases" in (one.kind, other.kind):
        return one.kind == other.kind and _covers(one.args, other.args, rules)
    if is_certain(one) or is_certain(other):
        reals = _same_certain(one, other)
        if reals is not None:
            return reals
    left, right = items_of(one), items_of(other)
    if left is not None or right is not None:
        return _same_several(one, other, left, right, rules)
    if one.kind == "tuple" or other.kind == "tuple":
        return _same_tuple(one, other, rules)
    if one.kind == "mod" or other.kind == "mod":
        found = same_residue_class(one, other, rules.tolerance)
        return _same_amount(one, other, rules) if found is None else found
    if one.kind == "ratio" or other.kind == "ratio":
        return same_ratio(one, other, rules.tolerance)
    if one.kind == "rel" or other.kind == "rel":
        return _same_with_relation(one, other, rules)
    return _same_amount(one, other, rules)


def _same_certain(one: Node, other: Node) -> bool | None:
    """Sets of reals; as lists of numbers, brackets of two numbers are pairs in order."""
    found = same_reals(one, other)
    if found is None and one.kind == "tuple" and other.kind == "tuple" and _ends_differ(one, other):
        return False
    return found


def _ends_differ(one: Node, other: Node) -> bool:
    return {one.value, other.value} != {"()"} and one.value != other.value and len(one.args) == 2


def _same_amount(one: Node, other: Node, rules: Rules) -> bool | None:
    if INFINITY in (*every(one), *every(other)):
        return False
    return same_amount(one, other, rules.tolerance, rules.percent)


def _same_with_relation(one: Node, other: Node, rules: Rules) -> bool | None:
    """`a + b = 5` answers what 5 answers; other relations are no amounts."""
    relation, rest = (one, other) if one.kind == "rel" else (other, one)
    if rest.kind == "rel":
        return same_relation(one, other)
    if not set(relation.value) <= {"=", "~"} or symbols(relation.args[-1]) or relation.args[0].kind == "mul":
        return False
    if symbols(relation) & {"x", "y", "z"} and relation is other:
        return False  # the gold answer is a curve, not a sum that was asked for
    answer, gold = (relation.args[-1], rest) if relation is one else (rest, relation.args[-1])
    return _same_value(answer, gold, rules)


def _same_several(
    one: Node, other: Node, left: Sequence[Node] | None, right: Sequence[Node] | None, rules: Rules
) -> bool | None:
    if one.kind == "tuple" or other.kind == "tuple":
        found = _list_as_tuple(one, other, rules)
        if found is not None:
            return found
    if one.kind == "set" and other.kind == "set" and not (one.args and other.args):
        return one.args == other.args
    if left is not None and right is not None and _in_order(left, right):
        return _all([_same(a, b, rules) for a, b in zip(left, right, strict=True)])
    found = _covers([one] if left is None else left, [other] if right is None else right, rules)
    if not found and (_signs(one) > 1 or _signs(other) > 1):
        left, right = items_of(one, False), items_of(other, False)
        return _covers([one] if left is None else left, [other] if right is None else right, rules)
    return found


def _in_order(answers: Sequence[Node], golds: Sequence[Node]) -> bool:
    """Whether bare values stand for values of different variables, `x = 5, y = 3`, so that their order counts."""
    if len(answers) != len(golds) or any(named(part).name is not None for part in answers):
        return False
    names = [named(part).name for part in golds]
    return len(names) == len({str(name.value)[:1] for name in names if name is not None and name.kind == "sym"})


def _signs(node: Node) -> int:
    return sum(part.kind == "pm" for part in every(node))


def _list_as_tuple(one: Node, other: Node, rules: Rules) -> bool | None:
    """`x = 1, y = 2`, or `1, 2` in this order, for `(1, 2)`; None where one of them is a list of tuples."""
    plain, pair = (one, other) if one.kind == "list" else (other, one)
    if plain.kind != "list" or pair.kind != "tuple" or any(part.kind == "tuple" for part in plain.args):
        return None
    if pair is other and pair.value == "[]" and len(pair.args) == 2:
        return False  # the gold answer is an interval
    parts = [named(part) for part in plain.args]
    if all(part.name is not None and part.name.kind == "sym" for part in parts):
        parts.sort(key=lambda part: str(part.name.value) if part.name else "")
    values = [part.value for part in parts]
    return len(values) == len(pair.args) and _all(
        [_same_value(a, b, rules) for a, b in zip(values, pair.args, strict=True)]
    )


def _covers(left: Sequence[Node], right: Sequence[Node], rules: Rules) -> bool | None:
    """Whether each of one is among the others, and the other way round; the order does not count."""
    if not left or not right:
        return False
    numbers = [frozenset(part.value if part.kind == "num" else None for part in side) for side in (left, right)]
    if not any(None in side for side in numbers):
        return numbers[0] == numbers[1]
    if max(len(left), len(right)) > MOST_ITEMS:
        return frozenset(left) == frozenset(right)
    left, right = _distinct(left, rules), _distinct(right, rules)
    if len(left) != len(right):
        return False
    rest, unsure = list(right), False
    for one in left:
        verdicts = [_same_item(one, other, rules) for other in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            unsure = True
        else:
            return False
    return None if unsure else True


def _same_item(one: Node, other: Node, rules: Rules) -> bool | None:
    """A set among the items is equal to a set alone."""
    return False if (one.kind == "set") != (other.kind == "set") else _same(one, other, rules)


def _distinct(items: Sequence[Node], rules: Rules) -> list[Node]:
    kept: list[Node] = []
    for item in items:
        if not any(_same_item(item, other, rules) for other in kept):
            kept.append(item)
    return kept


def _same_tuple(one: Node, other: Node, rules: Rules) -> bool | None:
    if one.kind != "tuple" or other.kind != "tuple":
        return False
    if len(one.args) != len(other.args):
        return False
    if len(one.args) == 2 and one.value != other.value:
        return False
    return _all([_same(a, b, rules) for a, b in zip(one.args, other.args, strict=True)])


def _same_matrix(one: Node, other: Node, rules: Rules) -> bool | None:
    left, right = _rows(_multiplied_out(one)), _rows(_multiplied_out(other))
    if left is None or right is None:
        return False
    if len(left) == 1 or len(right) == 1 or len(left[0]) == 1 or len(right[0]) == 1:
        if min(len(left), len(left[0])) > 1 or min(len(right), len(right[0])) > 1:
            return False
        left, right = [[cell for row in left for cell in row]], [[cell for row in right for cell in row]]
    if [len(row) for row in left] != [len(row) for row in right]:
        return False
    cells = [(a, b) for rows in zip(left, right, strict=True) for a, b in zip(*rows, strict=True)]
    return _all([_same(a, b, rules) for a, b in cells])


def _multiplied_out(node: Node) -> Node:
    """A matrix, or a vector in brackets, with the factor before it in its cells."""
    if node.kind == "neg" and node.args[0].kind in ("matrix", "mul"):
        inner = _multiplied_out(node.args[0])
        return (
            inner._replace(args=tuple(Node("neg", (cell,)) for cell in inner.args)) if inner.kind == "matrix" else node
        )
    if node.kind == "div" and node.args[0].kind == "matrix":
        return node.args[0]._replace(args=tuple(Node("div", (cell, node.args[1])) for cell in node.args[0].args))
    if node.kind != "mul" or sum(part.kind == "matrix" for part in node.args) != 1:
        return node
    factors = [part for part in node.args if part.kind != "matrix"]
    matrix = next(part for part in node.args if part.kind == "matrix")
    return matrix._replace(args=tuple(Node("mul", (*factors, cell)) for cell in matrix.args))


def _from_unit_vectors(node: Node, like: Node) -> Node:
    """A sum of the vectors i, j and k as a tuple, where the other answer is a vector."""
    names = symbols(node)
    if not names or not names <= set(UNIT_VECTORS) or like.kind not in ("tuple", "matrix"):
        return node
    places = range(len(like.args))
    parts = [replaced(node, {name: ONE if UNIT_VECTORS[name] == place else ZERO for name in names}) for place in places]
    return node if max(UNIT_VECTORS[name] for name in names) >= len(like.args) else Node("tuple", tuple(parts), "()")


def _rows(node: Node) -> list[list[Node]] | None:
    """The rows of a matrix, of brackets in brackets, or of one vector."""
    if node.kind == "matrix":
        width = node.value[1]
        return [list(node.args[start : start + width]) for start in range(0, len(node.args), width)]
    if node.kind != "tuple" or not node.args or node.value not in ("()", "[]"):
        return None
    if all(part.kind == "tuple" and part.args for part in node.args):
        return [list(part.args) for part in node.args]
    return None if contains(Node("list", node.args), "tuple") else [list(node.args)]


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    return False if False in verdicts else None if None in verdicts else True
