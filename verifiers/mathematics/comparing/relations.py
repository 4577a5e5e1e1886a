"""Comparing equations and inequalities of several variables: equal up to a factor, whose sign counts for `<`."""

from __future__ import annotations

from random import Random
from typing import Any

from qwq_rl.verifiers.mathematics.comparing.exact import PRIME, NotExact, TooLarge, Undefined, residue
from qwq_rl.verifiers.mathematics.comparing.numeric import Unworkable, context, evaluate
from qwq_rl.verifiers.mathematics.reading.node import Node, contains, every, symbols

ORDERED = {
    "<": ("<", 1),
    ">": ("<", -1),
    "<=": ("<=", 1),
    ">=": ("<=", -1),
    "=": ("=", 0),
    "!=": ("!=", 0),
    "~": ("=", 0),
}
POINTS = 4


def same_relation(one: Node, other: Node) -> bool | None:
    """Whether two relations with one sign each say the same; None where this is not told here."""
    if one.kind != "rel" or other.kind != "rel" or len(one.value) != 1 or len(other.value) != 1:
        return None
    if one.value[0] not in ORDERED or other.value[0] not in ORDERED:
        return None
    (left_sign, left_turn), (right_sign, right_turn) = ORDERED[one.value[0]], ORDERED[other.value[0]]
    if left_sign != right_sign:
        return False
    names = sorted(symbols(one) | symbols(other))
    left, right = _difference(one), _difference(other)
    if left_turn == 0 and symbols(one) != symbols(other):
        return False
    exact = None if left_turn else _exact_ratio(left, right, names)
    if exact is not None:
        is_open = _divides_by_variable(one) or _divides_by_variable(other)
        return exact or _solved(one, other) or _solved(other, one) or (None if is_open else False)
    return _ratio_at_points(left, right, names, left_turn * right_turn)


def _divides_by_variable(node: Node) -> bool:
    """Whether an equation may say the same as one that differs from it by more than a constant factor."""
    return any(part.kind == "div" and symbols(part.args[1]) for part in every(node))


def _solved(one: Node, other: Node) -> bool:
    """Whether `one` is `other`, of the first degree in a variable, solved for that: `y = 1/x` and `xy = 1`."""
    name, value = one.args
    if one.value != ("=",) or name.kind != "sym" or name.value in symbols(value):
        return False
    difference, rest = _difference(other), sorted(symbols(other) - {name.value})
    random = Random(",".join(rest))
    at = {one_name: random.randrange(2, PRIME) for one_name in rest}
    try:
        found = residue(value, at)
        zero = residue(difference, {**at, name.value: found})
        low, middle, high = (residue(difference, {**at, name.value: point}) for point in (1, 2, 3))
    except (NotExact, TooLarge, Undefined):
        return False
    return zero == 0 and (low - 2 * middle + high) % PRIME == 0 and low != middle


def _difference(node: Node) -> Node:
    return Node("add", (node.args[0], Node("neg", (node.args[1],))))


def _exact_ratio(left: Node, right: Node, names: list[str]) -> bool | None:
    """Whether the ratio is constant, by its values modulo a prime."""
    random = Random(",".join(names))
    ratios = set()
    for _ in range(3):
        at = {name: random.randrange(2, PRIME) for name in names}
        try:
            over, under = residue(left, at), residue(right, at)
        except (NotExact, TooLarge, Undefined):
            return None
        if over == 0 or under == 0:
            return over == under
        ratios.add(over * pow(under, -1, PRIME) % PRIME)
    return len(ratios) == 1


def _ratio_at_points(left: Node, right: Node, names: list[str], turn: int) -> bool | None:
    mp = context()
    random = Random(",".join(names))
    ratios: list[Any] = []
    for _ in range(4 * POINTS):
        at = {name: mp.mpf(random.uniform(0.2, 9.0)) * random.choice((1, 1, -1)) for name in names}
        try:
            over, under = evaluate(left, at), evaluate(right, at)
        except Undefined:
            continue
        except Unworkable:
            return None
        if under == 0 or over.imag != 0 or under.imag != 0:
            continue
        ratios.append(over / under)
        if len(ratios) == POINTS:
            break
    if len(ratios) < POINTS:
        return None
    if any(abs(ratio - ratios[0]) > mp.mpf(10) ** -40 * abs(ratios[0]) for ratio in ratios) or ratios[0] == 0:
        is_open = any(_divides_by_variable(side) or contains(side, "root") for side in (left, right))
        return None if is_open else False
    return turn == 0 or (ratios[0] > 0) == (turn > 0)
