"""Bringing readings into shapes that compare: names set apart, plus-minus written out, conditions dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qwq_rl.verifiers.mathematics.comparing.exact import Undefined
from qwq_rl.verifiers.mathematics.comparing.identity import same_expression
from qwq_rl.verifiers.mathematics.comparing.numeric import Unworkable, evaluate
from qwq_rl.verifiers.mathematics.reading.node import Node, contains, every, symbol, symbols

NUMBER_SETS = frozenset({"ℤ", "ℕ", "ℝ", "ℚ", "ℂ", "ℤ+", "ℤ^+", "ℝ+", "ℕ*", "ℕ+"})
ROUGHLY = 0.1
"""Relative: how far off what stands after `\\approx` may be."""
MOST_SIGNS = 4
BOUND = "k°"
"""Begins the name of a variable that runs over the integers, whatever the answer called it."""


class Named(NamedTuple):
    """What an answer says, and the name that it gives to it, if any."""

    value: Node
    name: Node | None = None
    consistent: bool = True
    """Whether all that it equates is equal."""


def replaced(node: Node, names: Mapping[str, Node]) -> Node:
    """`node` with variables replaced."""
    if node.kind == "sym":
        return names.get(node.value, node)
    return node._replace(args=tuple(replaced(part, names) for part in node.args)) if node.args else node


def unconditioned(node: Node) -> Node:
    """`node` without "k is an integer" and the like; a variable that is bound so gets a name of its own."""
    if node.kind not in ("list", "such"):
        return node
    plain = [part for part in node.args if not _says_number(part)]
    if len(plain) == len(node.args) or not plain:
        return node
    bound = [part.args[0].value for part in node.args if _says_number(part) and part.args[1].value[0] in "ℤℕ"]
    # x in R says nothing new; k in Z binds k.
    names = {name: symbol(f"{BOUND}{place}") for place, name in enumerate(bound)}
    kept = [replaced(part, names) for part in plain]
    if node.kind == "such" and len(kept) == 2 and kept[1].kind == "rel" and kept[1].value == ("=",):
        kept = kept[1:] if kept[0] == kept[1].args[0] and kept[0].kind == "sym" else kept  # {x | x = 2k}
    return kept[0] if len(kept) == 1 else node._replace(args=tuple(kept))


def same_number_sets(one: Node, other: Node) -> bool:
    """Whether the variables of two answers run over the same sets, as far as both say over which."""
    left, right = _number_sets(one), _number_sets(other)
    return not left or not right or left - {"ℝ"} == right - {"ℝ"}


def _number_sets(node: Node) -> set[str]:
    if node.kind not in ("list", "such"):
        return set()
    sets = (str(part.args[1].value) for part in node.args if _says_number(part))
    return {name if len(name) == 1 else "ℕ" if name[0] in "ℤℕ" else name for name in sets}


def parameters(node: Node) -> list[str]:
    """The names that `node` says are any real numbers, in order: t of `(t, 2t), t \\in \\mathbb{R}`."""
    if node.kind not in ("list", "such") or len(node.args) < 2:
        return []
    return [str(part.args[0].value) for part in node.args if _says_number(part) and part.args[1].value[0] in "ℝℚℂ"]


def _says_number(node: Node) -> bool:
    return (
        node.kind == "in"
        and node.args[0].kind == "sym"
        and node.args[1].kind == "sym"
        and node.args[1].value in NUMBER_SETS
    )


def signed_apart(node: Node, linked: bool = True) -> list[Node]:
    """Every answer that a plus-minus stands for; `linked` signs change together."""
    if not contains(node, "pm"):
        return [node]
    places = sum(part.kind == "pm" for part in every(node))
    if linked or places > MOST_SIGNS:
        return [_with_signs(node, iter([sign] * places)) for sign in (True, False)]
    return [_with_signs(node, iter([bool(mask >> bit & 1) for bit in range(places)])) for mask in range(2**places)]


def _with_signs(node: Node, signs: Iterable[bool]) -> Node:
    signs = iter(signs)

    def rebuilt(one: Node) -> Node:
        if one.kind != "pm":
            return one._replace(args=tuple(rebuilt(part) for part in one.args)) if one.args else one
        parts = tuple(rebuilt(part) for part in one.args)
        plus = next(signs) == (one.value == "+")
        last = parts[-1] if plus else Node("neg", (parts[-1],))
        return last if len(parts) == 1 else Node("add", (parts[0], last))

    return rebuilt(node)


def items_of(node: Node, linked: bool = True) -> list[Node] | None:
    """The alternatives of a list, a set or a plus-minus; None for what is one answer."""
    if node.kind == "in" and node.args[1].kind == "set":
        return items_of(node.args[1], linked)
    if node.kind in ("list", "set"):
        return [one for part in node.args for one in _flat(part, linked)]
    if node.kind == "rel" and len(node.args) == 2 and node.args[1].kind in ("list", "set") and is_name(node.args[0]):
        return items_of(node.args[1], linked)
    if contains(node, "pm"):
        return signed_apart(node, linked)
    return None


def _flat(item: Node, linked: bool) -> list[Node]:
    """An item of a list, or its own items; a set in a set stays one."""
    found = None if item.kind == "set" else items_of(item, linked)
    return [item] if found is None else found


def is_name(node: Node) -> bool:
    """Whether `node` can stand before `=` as the name of what follows."""
    if node.kind in ("sym", "named"):
        return True
    if node.kind in ("mul", "union", "cap", "minus"):
        return all(part.kind == "sym" and part.value[0].isupper() for part in node.args)
    return node.kind in ("tuple", "abs", "ratio") and all(is_name(part) for part in node.args)


def named(node: Node) -> Named:
    """`node` without the name before `=`, and without what it is approximately."""
    if node.kind == "in" and is_name(node.args[0]):
        return Named(node.args[1], node.args[0])
    if node.kind == "mul" and len(node.args) == 2 and node.args[1].kind == "tuple" and is_name(node.args[0]):
        return Named(node.args[1], node.args[0])  # the point P(1, 2)
    if node.kind != "rel" or any(sign not in ("=", "~") for sign in node.value):
        return Named(node)
    kept, rounded = [node.args[0]], list[Node]()
    for place, (sign, side) in enumerate(zip(node.value, node.args[1:], strict=True)):
        if sign == "~" and (place or not is_name(node.args[0])):
            rounded = list(node.args[place + 1 :])
            break
        kept.append(side)
    found = _named(node, kept)
    return found if all(_roughly(side, found.value) for side in rounded) else found._replace(consistent=False)


def _named(node: Node, sides: list[Node]) -> Named:
    if len(sides) == 1:
        return Named(sides[0])
    if _coordinates(sides[0]) and sides[-1].kind == "tuple" and len(sides[0].args) == len(sides[-1].args):
        order = sorted(range(len(sides[0].args)), key=lambda place: str(sides[0].args[place].value))
        arranged = tuple(sides[-1].args[place] for place in order)
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


def _coordinates(node: Node) -> bool:
    return node.kind == "tuple" and all(part.kind == "sym" for part in node.args)


def _roughly(one: Node, other: Node) -> bool:
    """Whether two numbers are near each other; what is no number is not asked."""
    try:
        left, right = (evaluate(side.args[0] if side.kind == "quantity" else side, {}) for side in (one, other))
    except (Undefined, Unworkable):
        return True
    return bool(abs(left - right) <= ROUGHLY * max(abs(left), abs(right)))


def _all_equal(sides: list[Node]) -> bool:
    scalar = [side.args[0] if side.kind == "quantity" else side for side in sides]
    return all(same_expression(one, scalar[-1], 1e-2) is not False for one in scalar[:-1])
