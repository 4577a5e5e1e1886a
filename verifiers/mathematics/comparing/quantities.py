"""Comparing amounts: with and without units, percent and degree signs, in other bases, as ratios and residues."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from qwq_rl.verifiers.mathematics.comparing.exact import Undefined
from qwq_rl.verifiers.mathematics.comparing.identity import same_expression
from qwq_rl.verifiers.mathematics.comparing.numeric import Unworkable, evaluate
from qwq_rl.verifiers.mathematics.reading.node import Node, contains, number, symbol, symbols
from qwq_rl.verifiers.mathematics.reading.units import Unit, same_thing, unit_of

Percent = Literal["lenient", "strict"]
POUNDS = (Fraction("453.59237"), 1 / Fraction("453.59237"))
"""Grams of the pound that is also a currency."""
NO_UNIT = frozenset(
    {"unit", "square unit", "sq unit", "cubic unit", "unit ^2", "unit ^3", "unit squared", "unit cubed", "unit square"}
)


def same_amount(one: Node, other: Node, tolerance: float, percent: Percent) -> bool | None:
    """Whether two amounts are equal; a unit that only one of them names is taken for granted."""
    if "base" in (one.kind, other.kind):
        return _same_in_base(one, other)
    left, left_unit = apart(one)
    right, right_unit = apart(other)
    if "%" in (left_unit, right_unit):
        return _same_percent(left, left_unit, right, right_unit, tolerance, percent)
    if left_unit and right_unit:
        return _same_with_units(left, left_unit, right, right_unit, tolerance)
    unit = left_unit or right_unit
    same = same_expression(left, right, tolerance)
    if unit and same is not True:
        marked, bare = (left, right) if left_unit else (right, left)
        same = _as_the_other(marked, unit, bare, tolerance) or same
    return same


def apart(node: Node) -> tuple[Node, str]:
    """An amount and its unit, "" for none."""
    if node.kind == "percent":
        return node.args[0], "%"
    if node.kind == "neg" and node.args[0].kind in ("percent", "degree", "quantity"):
        inner, unit = apart(node.args[0])
        return Node("neg", (inner,)), unit
    if node.kind == "degree":
        return node.args[0], "degree"
    if node.kind == "quantity":
        inner, unit = apart(node.args[0])
        if unit and unit != str(node.value):
            unit = f"{unit} {node.value}"
        name = unit or str(node.value).strip().rstrip(".")
        if name.lower() in ("percent", "per cent", "percentage"):
            return inner, "%"
        return inner, "" if _no_unit(name) else name
    return node, ""


def _no_unit(name: str) -> bool:
    return name.lower().replace("units", "unit") in NO_UNIT


def _same_percent(
    left: Node, left_unit: str, right: Node, right_unit: str, tolerance: float, percent: Percent
) -> bool | None:
    if left_unit == right_unit:
        return same_expression(left, right, tolerance)
    marked, bare, unit = (left, right, right_unit) if left_unit == "%" else (right, left, left_unit)
    if unit:
        return False
    share = same_expression(Node("div", (marked, number(100))), bare, tolerance)
    if share is not False or percent == "strict":
        return share
    return same_expression(marked, bare, tolerance) and not _is_share(bare)


def _is_share(node: Node) -> bool:
    """Whether a number is at most 1, so that it is a share and no number of percent."""
    try:
        return bool(abs(evaluate(node, {})) <= 1)
    except (Undefined, Unworkable):
        return False


def _same_with_units(left: Node, left_unit: str, right: Node, right_unit: str, tolerance: float) -> bool | None:
    one, other = unit_of(left_unit), unit_of(right_unit)
    if one is None or other is None:
        agrees = one is None and other is None and same_thing(left_unit, right_unit)
        return agrees and same_expression(left, right, tolerance)
    if one[0] != other[0]:
        pounds = {one[0], other[0]} == {"gbp^1", "mass^1"} and one[1] / other[1] in POUNDS
        return pounds and same_expression(left, right, tolerance)
    return same_expression(_scaled(left, one), _scaled(right, other), tolerance)


def _scaled(value: Node, unit: Unit) -> Node:
    return value if unit[1] == 1 else Node("mul", (value, Node("num", (), Fraction(unit[1]))))


def _as_the_other(marked: Node, unit: str, bare: Node, tolerance: float) -> bool | None:
    """Degrees against radians, and `5 m` against the product of 5 and a variable m."""
    if unit in ("degree", "degrees") and any(part.kind == "const" for part in _below(bare)):
        return same_expression(Node("degree", (marked,)), bare, tolerance)
    if len(unit) == 1 and unit in symbols(bare):
        return same_expression(Node("mul", (marked, symbol(unit))), bare, tolerance)
    return False


def _below(node: Node) -> list[Node]:
    return [node, *(part for one in node.args for part in _below(one))]


def _same_in_base(one: Node, other: Node) -> bool:
    """The base may be left out where the gold answer tells it; a bare gold answer is a decimal number."""
    if other.kind != "base":
        return bool(same_expression(one, other))
    based, rest = other, one
    if rest.kind == "base":
        return bool(
            one.value[1] == other.value[1] and one.value[0].lstrip("0").upper() == other.value[0].lstrip("0").upper()
        )
    return rest.kind == "num" and str(rest.value) == based.value[0].lstrip("0")


def same_ratio(one: Node, other: Node, tolerance: float) -> bool | None:
    """Ratios in proportion, or a ratio of two with a fraction."""
    if one.kind == "ratio" and other.kind == "ratio":
        if len(one.args) != len(other.args):
            return False
        crossed = [
            same_expression(Node("mul", (a, other.args[0])), Node("mul", (b, one.args[0])), tolerance)
            for a, b in zip(one.args[1:], other.args[1:], strict=True)
        ]
        return False if False in crossed else None if None in crossed else True
    ratio, rest = (one, other) if one.kind == "ratio" else (other, one)
    if len(ratio.args) != 2 or contains(rest, "tuple", "list", "set", "rel"):
        return False
    return same_expression(Node("div", ratio.args), rest, tolerance)


def same_residue_class(one: Node, other: Node, tolerance: float) -> bool | None:
    """`x \\equiv 3 \\pmod 7` and `10 mod 7`: the same class of the same modulus; the name may be left out."""
    if one.kind != "mod" or other.kind != "mod":
        return None
    modulus = same_expression(one.args[1], other.args[1], tolerance)
    if not modulus:
        return modulus
    left, right = (_residue(node.args[0]) for node in (one, other))
    difference = Node("mod", (Node("add", (left, Node("neg", (right,)))), one.args[1]))
    return same_expression(difference, number(0), tolerance)


def _residue(node: Node) -> Node:
    return node.args[-1] if node.kind == "rel" else node
