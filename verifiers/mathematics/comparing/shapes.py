"""Brings readings into a shape that can be compared.

Names before `=` are separated, plus-minus is written out, and conditions are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qwq_rl.verifiers.mathematics.comparing.exact import Undefined
from qwq_rl.verifiers.mathematics.comparing.identity import same_expression
from qwq_rl.verifiers.mathematics.comparing.numeric import Unworkable, evaluate
from qwq_rl.verifiers.mathematics.reading.node import Node, contains, every, symbol, symbols

NUMBER_SETS = frozenset({"ℤ", "ℕ", "ℝ", "ℚ", "ℂ", "ℤ+", "ℤ^+", "ℝ+", "ℕ*", "ℕ+"})
ROUGHLY = 0.1
"""How far off a value after `\\approx` may be, relative."""
MOST_SIGNS = 4
"""The most plus-minus signs that change each on its own: n of them stand for 2^n answers."""
BOUND = "k°"
"""The new name of a variable that runs over the integers begins with this, whatever its name in the answer."""


class Named(NamedTuple):
    """The value of an answer, and the name that the answer gives to it, if any."""

    value: Node
    name: Node | None = None
    consistent: bool = True
    """Whether all sides of the equation are equal."""


def replaced(node: Node, names: Mapping[str, Node]) -> Node:
    """`node` with variables replaced by the nodes in `names`."""
    if node.kind == "sym":
        return names.get(node.value, node)
    return node._replace(args=tuple(replaced(part, names) for part in node.args)) if node.args else node


def unconditioned(node: Node) -> Node:
    """`node` without conditions such as "k is an integer".

    A variable that runs over the integers gets a new name, the same in every answer.
    """
    if node.kind not in ("list", "such"):
        return node
    unbound_parts = [part for part in node.args if not _is_in_number_set(part)]
    if len(unbound_parts) == len(node.args) or not unbound_parts:
        return node
    bound = [part.args[0].value for part in node.args if _is_in_number_set(part) and part.args[1].value[0] in "ℤℕ"]
    # "x in R" says nothing new, but "k in Z" makes k a running variable.
    names = {name: symbol(f"{BOUND}{index}") for index, name in enumerate(bound)}
    kept = [replaced(part, names) for part in unbound_parts]
    if node.kind == "such" and len(kept) == 2 and kept[1].kind == "rel" and kept[1].value == ("=",):
        kept = kept[1:] if kept[0] == kept[1].args[0] and kept[0].kind == "sym" else kept  # {x | x = 2k}
    return kept[0] if len(kept) == 1 else node._replace(args=tuple(kept))


def same_number_sets(one: Node, other: Node) -> bool:
    """Whether the variables of two answers run over the same sets, as far as both answers name them."""
    sets, other_sets = _number_sets(one), _number_sets(other)
    return not sets or not other_sets or sets - {"ℝ"} == other_sets - {"ℝ"}


def _number_sets(node: Node) -> set[str]:
    """The number sets that `node` names for its variables. Sets such as ℤ+ and ℕ* count as ℕ."""
    if node.kind not in ("list", "such"):
        return set()
    sets = (str(part.args[1].value) for part in node.args if _is_in_number_set(part))
    return {name if len(name) == 1 else "ℕ" if name[0] in "ℤℕ" else name for name in sets}


def parameters(node: Node) -> list[str]:
    """The variables that `node` says are any real number, in order: t of `(t, 2t), t \\in \\mathbb{R}`."""
    if node.kind not in ("list", "such") or len(node.args) < 2:
        return []
    return [str(part.args[0].value) for part in node.args if _is_in_number_set(part) and part.args[1].value[0] in "ℝℚℂ"]


def _is_in_number_set(node: Node) -> bool:
    """Whether `node` only says over which number set a variable runs."""
    return (
        node.kind == "in"
        and node.args[0].kind == "sym"
        and node.args[1].kind == "sym"
        and node.args[1].value in NUMBER_SETS
    )


def signed_apart(node: Node, linked: bool = True) -> list[Node]:
    """Every answer that a plus-minus stands for. With `linked`, all signs change together."""
    if not contains(node, "pm"):
        return [node]
    places = sum(part.kind == "pm" for part in every(node))
    if linked or places > MOST_SIGNS:
        return [_with_signs(node, iter([sign] * places)) for sign in (True, False)]
    return [_with_signs(node, iter([bool(mask >> bit & 1) for bit in range(places)])) for mask in range(2**places)]


def _with_signs(node: Node, signs: Iterable[bool]) -> Node:
    """`node` with its plus-minus nodes replaced by the given signs, in their order; True is the upper sign."""
    signs = iter(signs)

    def rebuilt(current: Node) -> Node:
        if current.kind != "pm":
            return current._replace(args=tuple(rebuilt(part) for part in current.args)) if current.args else current
        parts = tuple(rebuilt(part) for part in current.args)
        plus = next(signs) == (current.value == "+")
        last = parts[-1] if plus else Node("neg", (parts[-1],))
        return last if len(parts) == 1 else Node("add", (parts[0], last))

    return rebuilt(node)


def items_of(node: Node, linked: bool = True) -> list[Node] | None:
    """The alternatives of a list, a set or a plus-minus. None for a single answer."""
    if node.kind == "in" and node.args[1].kind == "set":
        return items_of(node.args[1], linked)
    if node.kind in ("list", "set"):
        return [item for part in node.args for item in _items_or_self(part, linked)]
    if node.kind == "rel" and len(node.args) == 2 and node.args[1].kind in ("list", "set") and is_name(node.args[0]):
        return items_of(node.args[1], linked)
    if contains(node, "pm"):
        return signed_apart(node, linked)
    return None


def _items_or_self(item: Node, linked: bool) -> list[Node]:
    """The items of an item of a list, or the item itself. A set in a set stays one item."""
    items = None if item.kind == "set" else items_of(item, linked)
    return [item] if items is None else items


def is_name(node: Node) -> bool:
    """Whether `node` can be before `=` as the name of what follows."""
    if node.kind in ("sym", "named"):
        return True
    if node.kind in ("mul", "union", "cap", "minus"):
        return all(part.kind == "sym" and part.value[0].isupper() for part in node.args)
    return node.kind in ("tuple", "abs", "ratio") and all(is_name(part) for part in node.args)


def named(node: Node) -> Named:
    """`node` without the name before `=`, and without its approximate value."""
    if node.kind == "in" and is_name(node.args[0]):
        return Named(node.args[1], node.args[0])
    if node.kind == "mul" and len(node.args) == 2 and node.args[1].kind == "tuple" and is_name(node.args[0]):
        return Named(node.args[1], node.args[0])  # the point P(1, 2)
    if node.kind != "rel" or any(sign not in ("=", "~") for sign in node.value):
        return Named(node)
    equal_sides, approximations = [node.args[0]], list[Node]()
    for index, (sign, side) in enumerate(zip(node.value, node.args[1:], strict=True)):
        # `x \approx 3.14` has only an approximate value; in `x = \pi \approx 3.14` it is an addition.
        if sign == "~" and (index or not is_name(node.args[0])):
            approximations = list(node.args[index + 1 :])
            break
        equal_sides.append(side)
    result = _split_name(node, equal_sides)
    return result if all(_roughly(side, result.value) for side in approximations) else result._replace(consistent=False)


def _split_name(node: Node, sides: list[Node]) -> Named:
    """The name and the value of the sides of a chain of equations."""
    if len(sides) == 1:
        return Named(sides[0])
    if _is_tuple_of_variables(sides[0]) and sides[-1].kind == "tuple" and len(sides[0].args) == len(sides[-1].args):
        # By the names of the variables, so that `(y, x) = (2, 1)` is the point (1, 2).
        order = sorted(range(len(sides[0].args)), key=lambda index: str(sides[0].args[index].value))
        arranged = tuple(sides[-1].args[index] for index in order)
        return Named(sides[-1]._replace(args=arranged), None, _all_equal(sides[1:]))
    if is_name(sides[0]) and not symbols(sides[0]) & symbols(Node("list", tuple(sides[1:]))):
        return Named(sides[-1], sides[0], _all_equal(sides[1:]))
    if is_name(sides[-1]) and len(sides) == 2 and not symbols(sides[-1]) & symbols(sides[0]):
        return Named(sides[0], sides[-1])
    if len(sides) > 2 and not is_name(sides[0]):
        return Named(sides[-1], None, _all_equal(sides))
    if not symbols(node):
        return Named(sides[-1], None, _all_equal(sides))
    return Named(node)


def _is_tuple_of_variables(node: Node) -> bool:
    """Whether `node` is a tuple of variables, as in `(x, y) = (1, 2)`."""
    return node.kind == "tuple" and all(part.kind == "sym" for part in node.args)


def _roughly(first: Node, second: Node) -> bool:
    """Whether two numbers are near each other. True if one of them is no number."""
    try:
        left, right = (evaluate(side.args[0] if side.kind == "quantity" else side, {}) for side in (first, second))
    except (Undefined, Unworkable):
        return True
    return bool(abs(left - right) <= ROUGHLY * max(abs(left), abs(right)))


def _all_equal(sides: list[Node]) -> bool:
    """Whether no side of a chain of equations differs from the last one."""
    scalars = [side.args[0] if side.kind == "quantity" else side for side in sides]
    return all(same_expression(scalar, scalars[-1], 1e-2) is not False for scalar in scalars[:-1])
