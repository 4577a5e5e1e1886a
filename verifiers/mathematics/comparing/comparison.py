"""Whether two readings are the same answer: lists, tuples, sets, matrices, relations, and the amounts in them.

`same` is the entry. `_same` compares with names such as `x =`, `_same_value` without them, by the kind of the answer.
"""

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
"""Usual names of constants of integration."""
UNKNOWNS = frozenset({"x", "y", "z"})
"""Usual names of the unknown. They never name a running integer."""
NUMBERS = frozenset({"num", "dec"})
UNIT_VECTORS = {"hat i": 0, "hat j": 1, "hat k": 2}
MOST_ITEMS = 40
"""The longest list whose items are compared each with each. The items of a longer list must be written alike."""


@dataclass(frozen=True)
class Rules:
    """The rules that a user of the verifier may set."""

    tolerance: float = 1e-6
    """Relative. Applies only between a decimal and a number that no decimal writes in full."""
    percent: Percent = "lenient"
    """Whether `50%` may be written 50, or only 0.5."""


def same(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Whether `answer` means the same as `gold`. None if this cannot be decided here."""
    if answer == gold:
        return True
    if not same_number_sets(answer, gold):
        return False
    plain_answer, plain_gold = unconditioned(_with_parameters_of(answer, gold)), unconditioned(gold)
    if "such" in (plain_answer.kind, plain_gold.kind):
        return _same_with_remarks(plain_answer, plain_gold, rules)
    return _same(_renamed(plain_answer, plain_gold), plain_gold, rules)


def _with_parameters_of(answer: Node, gold: Node) -> Node:
    """`answer` with its real parameters renamed to those of `gold`, in their order."""
    answer_names, gold_names = parameters(answer), parameters(gold)
    if (
        not answer_names
        or len(answer_names) != len(gold_names)
        or symbols(answer) & set(gold_names) - set(answer_names)
    ):
        return answer
    return replaced(answer, {name: symbol(gold_name) for name, gold_name in zip(answer_names, gold_names, strict=True)})


def _same_with_remarks(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Compare answers with a condition in brackets after them. One of the two may leave it out."""
    if answer.kind == gold.kind == "such" and answer.value == gold.value == "remark":
        return _all_true(
            [
                _same(answer_part, gold_part, rules)
                for answer_part, gold_part in zip(answer.args, gold.args, strict=False)
            ]
        )
    answer_value = answer.args[0] if answer.value == "remark" and answer.kind == "such" else answer
    gold_value = gold.args[0] if gold.value == "remark" and gold.kind == "such" else gold
    return _same(_renamed(answer_value, gold_value), gold_value, rules)


def _same(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Compare two answers that may begin with a name, as in `x = 5`."""
    if answer == gold:
        return True
    named_answer, named_gold = named(answer), named(gold)
    if not named_answer.consistent:
        return False
    result = _same_relations(answer, gold, named_answer, named_gold, rules)
    if result is not None:
        return result
    if _names_clash(named_answer, named_gold):
        return False
    return _same_value(named_answer.value, named_gold.value, rules)


def _same_relations(answer: Node, gold: Node, left: Named, right: Named, rules: Rules) -> bool | None:
    """Compare two equations of which at least one is more than an assignment. None if this does not decide it."""
    if answer.kind != "rel" or gold.kind != "rel" or (left.name and right.name and left.name == right.name):
        return None
    if left.name is not None and right.name is not None:
        # `x = 5` and `y = 5` are left to the check of the names.
        if not symbols(left.value) or not symbols(right.value):
            return None
        return True if same_relation(answer, gold) else None
    if is_certain(answer) or is_certain(gold):
        return None
    return same_relation(answer, gold)


def _names_clash(left: Named, right: Named) -> bool:
    """Whether two assignments are to different variables."""
    if left.name is not None and right.name is not None and left.name.kind == right.name.kind == "ratio":
        return left.name != right.name
    if left.name is None or right.name is None or left.name.kind != "sym" or right.name.kind != "sym":
        return False
    answer_name, gold_name = (str(name.value).split("_")[0].rstrip("'") for name in (left.name, right.name))
    return answer_name != gold_name and len(answer_name) == 1 and len(gold_name) == 1


def _renamed(answer: Node, gold: Node) -> Node:
    """`answer` with its constant of integration, or its running integer, renamed to that of `gold`."""
    answer_names, gold_names = symbols(answer) - symbols(gold), symbols(gold) - symbols(answer)
    if len(answer_names) != 1 or len(gold_names) != 1:
        return answer
    answer_name, gold_name = next(iter(answer_names)), next(iter(gold_names))
    is_bound = (answer_name.startswith(BOUND) or gold_name.startswith(BOUND)) and not {
        answer_name,
        gold_name,
    } & UNKNOWNS
    if is_bound or ({answer_name, gold_name} <= CONSTANTS and len(symbols(answer)) > 1):
        return replaced(answer, {answer_name: symbol(gold_name)})
    return answer


def _same_value(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Compare two answers without names, by the kind of the answer."""
    if answer == gold:
        return True
    if answer.kind in NUMBERS and gold.kind in NUMBERS:
        return same_expression(answer, gold, rules.tolerance)
    answer, gold = _from_unit_vectors(answer, gold), _from_unit_vectors(gold, answer)
    # The order matters: an interval is also a tuple, and a tuple may also be a list of items.
    if contains(answer, "matrix") or contains(gold, "matrix"):
        return _same_matrix(answer, gold, rules)
    if "cases" in (answer.kind, gold.kind):
        return answer.kind == gold.kind and _covers(answer.args, gold.args, rules)
    if is_certain(answer) or is_certain(gold):
        same_set = _same_certain(answer, gold)
        if same_set is not None:
            return same_set
    answer_items, gold_items = items_of(answer), items_of(gold)
    if answer_items is not None or gold_items is not None:
        return _same_several(answer, gold, answer_items, gold_items, rules)
    if answer.kind == "tuple" or gold.kind == "tuple":
        return _same_tuple(answer, gold, rules)
    if answer.kind == "mod" or gold.kind == "mod":
        same_class = same_residue_class(answer, gold, rules.tolerance)
        return _same_amount(answer, gold, rules) if same_class is None else same_class
    if answer.kind == "ratio" or gold.kind == "ratio":
        return same_ratio(answer, gold, rules.tolerance)
    if answer.kind == "rel" or gold.kind == "rel":
        return _same_with_relation(answer, gold, rules)
    return _same_amount(answer, gold, rules)


def _same_certain(answer: Node, gold: Node) -> bool | None:
    """Compare sets of reals. None if they may be lists of numbers, or points."""
    result = same_reals(answer, gold)
    if result is None and answer.kind == "tuple" and gold.kind == "tuple" and _ends_differ(answer, gold):
        return False
    return result


def _ends_differ(answer: Node, gold: Node) -> bool:
    """Whether two pairs in brackets can only be intervals with different ends."""
    return {answer.value, gold.value} != {"()"} and answer.value != gold.value and len(answer.args) == 2


def _same_amount(answer: Node, gold: Node, rules: Rules) -> bool | None:
    if INFINITY in (*every(answer), *every(gold)):
        return False
    return same_amount(answer, gold, rules.tolerance, rules.percent)


def _same_with_relation(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Compare `a + b = 5` with 5: they are the same answer. Other relations are no amounts."""
    relation, rest = (answer, gold) if answer.kind == "rel" else (gold, answer)
    if rest.kind == "rel":
        return same_relation(answer, gold)
    if not set(relation.value) <= {"=", "~"} or symbols(relation.args[-1]) or relation.args[0].kind == "mul":
        return False
    if symbols(relation) & {"x", "y", "z"} and relation is gold:
        return False  # the gold answer is a curve, not a sum that was asked for
    answer_value, gold_value = (relation.args[-1], rest) if relation is answer else (rest, relation.args[-1])
    return _same_value(answer_value, gold_value, rules)


def _same_several(
    answer: Node, gold: Node, answer_items: Sequence[Node] | None, gold_items: Sequence[Node] | None, rules: Rules
) -> bool | None:
    """Compare two answers of which at least one has several items."""
    if answer.kind == "tuple" or gold.kind == "tuple":
        result = _list_as_tuple(answer, gold, rules)
        if result is not None:
            return result
    if answer.kind == "set" and gold.kind == "set" and not (answer.args and gold.args):
        return answer.args == gold.args
    if answer_items is not None and gold_items is not None and _in_order(answer_items, gold_items):
        return _all_true(
            [
                _same(answer_item, gold_item, rules)
                for answer_item, gold_item in zip(answer_items, gold_items, strict=True)
            ]
        )
    result = _covers(
        [answer] if answer_items is None else answer_items, [gold] if gold_items is None else gold_items, rules
    )
    # Several plus-minus signs change together, or each on its own: `\pm 1 \pm 2`.
    if not result and (_signs(answer) > 1 or _signs(gold) > 1):
        answer_items, gold_items = items_of(answer, False), items_of(gold, False)
        return _covers(
            [answer] if answer_items is None else answer_items, [gold] if gold_items is None else gold_items, rules
        )
    return result


def _in_order(answers: Sequence[Node], golds: Sequence[Node]) -> bool:
    """Whether bare values answer for different variables, as for `x = 5, y = 3`, so that their order counts."""
    if len(answers) != len(golds) or any(named(part).name is not None for part in answers):
        return False
    names = [named(part).name for part in golds]
    return len(names) == len({str(name.value)[:1] for name in names if name is not None and name.kind == "sym"})


def _signs(node: Node) -> int:
    return sum(part.kind == "pm" for part in every(node))


def _list_as_tuple(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Compare `x = 1, y = 2`, or `1, 2` in this order, with `(1, 2)`.

    None if one of them is a list of tuples.
    """
    list_node, tuple_node = (answer, gold) if answer.kind == "list" else (gold, answer)
    if list_node.kind != "list" or tuple_node.kind != "tuple" or any(part.kind == "tuple" for part in list_node.args):
        return None
    if tuple_node is gold and tuple_node.value == "[]" and len(tuple_node.args) == 2:
        return False  # the gold answer is an interval
    parts = [named(part) for part in list_node.args]
    if all(part.name is not None and part.name.kind == "sym" for part in parts):
        # A point lists its coordinates by the names of the variables, so their order in the list is free.
        parts.sort(key=lambda part: str(part.name.value) if part.name else "")
    values = [part.value for part in parts]
    return len(values) == len(tuple_node.args) and _all_true(
        [
            _same_value(list_value, tuple_value, rules)
            for list_value, tuple_value in zip(values, tuple_node.args, strict=True)
        ]
    )


def _covers(answers: Sequence[Node], golds: Sequence[Node], rules: Rules) -> bool | None:
    """Whether each item of one side is among the items of the other side, in any order."""
    if not answers or not golds:
        return False
    # Plain numbers need no comparison of each with each.
    numbers = [frozenset(part.value if part.kind == "num" else None for part in side) for side in (answers, golds)]
    if not any(None in side for side in numbers):
        return numbers[0] == numbers[1]
    if max(len(answers), len(golds)) > MOST_ITEMS:
        return frozenset(answers) == frozenset(golds)
    answers, golds = _distinct(answers, rules), _distinct(golds, rules)
    if len(answers) != len(golds):
        return False
    unmatched, is_unsure = list(golds), False
    for answer in answers:
        verdicts = [_same_item(answer, gold, rules) for gold in unmatched]
        # Each gold item may be matched only once.
        if True in verdicts:
            del unmatched[verdicts.index(True)]
        elif None in verdicts:
            is_unsure = True
        else:
            return False
    return None if is_unsure else True


def _same_item(item: Node, other_item: Node, rules: Rules) -> bool | None:
    """Compare two items. A set among the items is only equal to a set."""
    return False if (item.kind == "set") != (other_item.kind == "set") else _same(item, other_item, rules)


def _distinct(items: Sequence[Node], rules: Rules) -> list[Node]:
    """The items without repetitions."""
    kept: list[Node] = []
    for item in items:
        if not any(_same_item(item, kept_item, rules) for kept_item in kept):
            kept.append(item)
    return kept


def _same_tuple(answer: Node, gold: Node, rules: Rules) -> bool | None:
    if answer.kind != "tuple" or gold.kind != "tuple":
        return False
    if len(answer.args) != len(gold.args):
        return False
    if len(answer.args) == 2 and answer.value != gold.value:
        return False
    return _all_true(
        [_same(answer_part, gold_part, rules) for answer_part, gold_part in zip(answer.args, gold.args, strict=True)]
    )


def _same_matrix(answer: Node, gold: Node, rules: Rules) -> bool | None:
    """Compare matrices cell by cell. A vector may be written as a row or as a column."""
    answer_rows, gold_rows = _rows(_multiplied_out(answer)), _rows(_multiplied_out(gold))
    if answer_rows is None or gold_rows is None:
        return False
    # A vector: all cells in one row on both sides.
    if len(answer_rows) == 1 or len(gold_rows) == 1 or len(answer_rows[0]) == 1 or len(gold_rows[0]) == 1:
        if min(len(answer_rows), len(answer_rows[0])) > 1 or min(len(gold_rows), len(gold_rows[0])) > 1:
            return False
        answer_rows, gold_rows = (
            [[cell for row in answer_rows for cell in row]],
            [[cell for row in gold_rows for cell in row]],
        )
    if [len(row) for row in answer_rows] != [len(row) for row in gold_rows]:
        return False
    cells = [
        (answer_cell, gold_cell)
        for rows in zip(answer_rows, gold_rows, strict=True)
        for answer_cell, gold_cell in zip(*rows, strict=True)
    ]
    return _all_true([_same(answer_cell, gold_cell, rules) for answer_cell, gold_cell in cells])


def _multiplied_out(node: Node) -> Node:
    """A matrix with the factor before it multiplied into its cells."""
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
    """A sum of the unit vectors i, j and k as a tuple, if `like` is a vector."""
    names = symbols(node)
    if not names or not names <= set(UNIT_VECTORS) or like.kind not in ("tuple", "matrix"):
        return node
    indices = range(len(like.args))
    parts = [replaced(node, {name: ONE if UNIT_VECTORS[name] == axis else ZERO for name in names}) for axis in indices]
    return node if max(UNIT_VECTORS[name] for name in names) >= len(like.args) else Node("tuple", tuple(parts), "()")


def _rows(node: Node) -> list[list[Node]] | None:
    """The rows of a matrix, of brackets in brackets, or of one vector. None for all else."""
    if node.kind == "matrix":
        width = node.value[1]
        return [list(node.args[start : start + width]) for start in range(0, len(node.args), width)]
    if node.kind != "tuple" or not node.args or node.value not in ("()", "[]"):
        return None
    if all(part.kind == "tuple" and part.args for part in node.args):
        return [list(part.args) for part in node.args]
    return None if contains(Node("list", node.args), "tuple") else [list(node.args)]


def _all_true(verdicts: Sequence[bool | None]) -> bool | None:
    return False if False in verdicts else None if None in verdicts else True
