"""Compares equations and inequalities of several variables.

Two of them are the same if their differences of both sides are equal up to a constant factor; for `<` its sign counts.
"""

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
"""Sign -> the sign that it is compared as, and its direction: -1 if the two sides change places, 0 if it has none."""
POINTS = 4
"""How many points must give the same ratio."""


def same_relation(one: Node, other: Node) -> bool | None:
    """Whether two relations with one sign each say the same. None if this cannot be decided here."""
    if one.kind != "rel" or other.kind != "rel" or len(one.value) != 1 or len(other.value) != 1:
        return None
    if one.value[0] not in ORDERED or other.value[0] not in ORDERED:
        return None
    (left_sign, left_direction), (right_sign, right_direction) = ORDERED[one.value[0]], ORDERED[other.value[0]]
    if left_sign != right_sign:
        return False
    names = sorted(symbols(one) | symbols(other))
    left, right = _difference(one), _difference(other)
    if left_direction == 0 and symbols(one) != symbols(other):
        return False
    is_constant = None if left_direction else _exact_ratio(left, right, names)
    if is_constant is not None:
        is_open = _divides_by_variable(one) or _divides_by_variable(other)
        return is_constant or _solved(one, other) or _solved(other, one) or (None if is_open else False)
    return _ratio_at_points(left, right, names, left_direction * right_direction)


def _divides_by_variable(node: Node) -> bool:
    """Whether the relation divides by a variable.

    Then it may say the same as a relation that differs from it by more than a constant factor.
    """
    return any(part.kind == "div" and symbols(part.args[1]) for part in every(node))


def _solved(first: Node, second: Node) -> bool:
    """Whether `first` is `second` solved for a variable, as `y = 1/x` is `xy = 1` solved for y.

    `second` must be of the first degree in that variable.
    """
    name, value = first.args
    if first.value != ("=",) or name.kind != "sym" or name.value in symbols(value):
        return False
    difference, rest = _difference(second), sorted(symbols(second) - {name.value})
    # Seeded by the names, so that the verdict is the same in every run.
    random = Random(",".join(rest))
    point = {variable: random.randrange(2, PRIME) for variable in rest}
    try:
        solution = residue(value, point)
        zero = residue(difference, {**point, name.value: solution})
        low, middle, high = (residue(difference, {**point, name.value: value_of_name}) for value_of_name in (1, 2, 3))
    except (NotExact, TooLarge, Undefined):
        return False
    # Equal differences at three equal steps show that the relation is linear in the variable.
    return zero == 0 and (low - 2 * middle + high) % PRIME == 0 and low != middle


def _difference(node: Node) -> Node:
    """The left side minus the right side."""
    return Node("add", (node.args[0], Node("neg", (node.args[1],))))


def _exact_ratio(left: Node, right: Node, names: list[str]) -> bool | None:
    """Whether the ratio of the two is constant, by its values modulo a prime.

    None if one of them has no such value.
    """
    random = Random(",".join(names))
    ratios = set()
    for _ in range(3):
        point = {name: random.randrange(2, PRIME) for name in names}
        try:
            left_value, right_value = residue(left, point), residue(right, point)
        except (NotExact, TooLarge, Undefined):
            return None
        if left_value == 0 or right_value == 0:
            return left_value == right_value
        ratios.add(left_value * pow(right_value, -1, PRIME) % PRIME)
    return len(ratios) == 1


def _ratio_at_points(left: Node, right: Node, names: list[str], direction: int) -> bool | None:
    """Whether the ratio of the two is constant at sample points, and for inequalities has the right sign."""
    mp = context()
    random = Random(",".join(names))
    ratios: list[Any] = []
    for _ in range(4 * POINTS):  # some points are outside of the domain
        point = {name: mp.mpf(random.uniform(0.2, 9.0)) * random.choice((1, 1, -1)) for name in names}
        try:
            left_value, right_value = evaluate(left, point), evaluate(right, point)
        except Undefined:
            continue
        except Unworkable:
            return None
        if right_value == 0 or left_value.imag != 0 or right_value.imag != 0:
            continue
        ratios.append(left_value / right_value)
        if len(ratios) == POINTS:
            break
    if len(ratios) < POINTS:
        return None
    if any(abs(ratio - ratios[0]) > mp.mpf(10) ** -40 * abs(ratios[0]) for ratio in ratios) or ratios[0] == 0:
        is_open = any(_divides_by_variable(side) or contains(side, "root") for side in (left, right))
        return None if is_open else False
    return direction == 0 or (ratios[0] > 0) == (direction > 0)
