"""Compares amounts: units, percent and degree signs, number bases, ratios and residue classes."""

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
"""Grams of a pound, and the inverse. The word "pound" may also mean the currency."""
NO_UNIT = frozenset(
    {"unit", "square unit", "sq unit", "cubic unit", "unit ^2", "unit ^3", "unit squared", "unit cubed", "unit square"}
)


def same_amount(one: Node, other: Node, tolerance: float, percent: Percent) -> bool | None:
    """Whether two amounts are equal. A unit that only one of them names is accepted."""
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
        same = _same_in_other_sense(marked, unit, bare, tolerance) or same
    return same


def apart(node: Node) -> tuple[Node, str]:
    """The amount and its unit; the unit is "" if there is none."""
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
    """Whether `name` only says "units", without a unit of measure."""
    return name.lower().replace("units", "unit") in NO_UNIT


def _same_percent(
    left: Node, left_unit: str, right: Node, right_unit: str, tolerance: float, percent: Percent
) -> bool | None:
    """Compare two amounts of which at least one is in percent."""
    if left_unit == right_unit:
        return same_expression(left, right, tolerance)
    percent_value, bare, unit = (left, right, right_unit) if left_unit == "%" else (right, left, left_unit)
    if unit:
        return False  # percent against metres
    same_share = same_expression(Node("div", (percent_value, number(100))), bare, tolerance)
    if same_share is not False or percent == "strict":
        return same_share
    # 50% may be written 50, but 0.5% is not 0.5: a bare number up to 1 can only be the share.
    return same_expression(percent_value, bare, tolerance) and not _is_share(bare)


def _is_share(node: Node) -> bool:
    """Whether a number is at most 1. Then it is a share of the whole, and no number of percent."""
    try:
        return bool(abs(evaluate(node, {})) <= 1)
    except (Undefined, Unworkable):
        return False


def _same_with_units(left: Node, left_unit: str, right: Node, right_unit: str, tolerance: float) -> bool | None:
    """Compare two amounts that both name a unit or a thing that is counted."""
    left_parsed, right_parsed = unit_of(left_unit), unit_of(right_unit)
    if left_parsed is None or right_parsed is None:
        agrees = left_parsed is None and right_parsed is None and same_thing(left_unit, right_unit)
        return agrees and same_expression(left, right, tolerance)
    if left_parsed[0] != right_parsed[0]:
        # "pounds" is read as a mass and "£" as money; the same number of both is the same answer.
        both_pounds = {left_parsed[0], right_parsed[0]} == {"gbp^1", "mass^1"} and left_parsed[1] / right_parsed[
            1
        ] in POUNDS
        return both_pounds and same_expression(left, right, tolerance)
    return same_expression(_scaled(left, left_parsed), _scaled(right, right_parsed), tolerance)


def _scaled(value: Node, unit: Unit) -> Node:
    return value if unit[1] == 1 else Node("mul", (value, Node("num", (), Fraction(unit[1]))))


def _same_in_other_sense(marked: Node, unit: str, bare: Node, tolerance: float) -> bool | None:
    """Compare degrees with radians, and `5 m` with the product of 5 and a variable m."""
    if unit in ("degree", "degrees") and any(part.kind == "const" for part in _all_parts(bare)):
        return same_expression(Node("degree", (marked,)), bare, tolerance)
    if len(unit) == 1 and unit in symbols(bare):
        return same_expression(Node("mul", (marked, symbol(unit))), bare, tolerance)
    return False


def _all_parts(node: Node) -> list[Node]:
    """The node and all nodes below it."""
    return [node, *(part for child in node.args for part in _all_parts(child))]


def _same_in_base(answer: Node, gold: Node) -> bool:
    """Compare numbers of which at least one names its base.

    The answer may leave the base out if the gold answer names it. If only the answer names a base, the gold answer is a
    decimal number.
    """
    if gold.kind != "base":
        return bool(same_expression(answer, gold))
    based, rest = gold, answer
    if rest.kind == "base":
        return bool(
            answer.value[1] == gold.value[1]
            and answer.value[0].lstrip("0").upper() == gold.value[0].lstrip("0").upper()
        )
    return rest.kind == "num" and str(rest.value) == based.value[0].lstrip("0")


def same_ratio(one: Node, other: Node, tolerance: float) -> bool | None:
    """Compare two ratios by proportion, or a ratio of two numbers with a fraction."""
    if one.kind == "ratio" and other.kind == "ratio":
        if len(one.args) != len(other.args):
            return False
        # a : b = c : d exactly if a * d = b * c.
        verdicts = [
            same_expression(Node("mul", (left_part, other.args[0])), Node("mul", (right_part, one.args[0])), tolerance)
            for left_part, right_part in zip(one.args[1:], other.args[1:], strict=True)
        ]
        return False if False in verdicts else None if None in verdicts else True
    ratio, rest = (one, other) if one.kind == "ratio" else (other, one)
    if len(ratio.args) != 2 or contains(rest, "tuple", "list", "set", "rel"):
        return False
    return same_expression(Node("div", ratio.args), rest, tolerance)


def same_residue_class(one: Node, other: Node, tolerance: float) -> bool | None:
    """Whether `x \\equiv 3 \\pmod 7` and `10 mod 7` are the same class of the same modulus.

    One of them may leave out the name `x`. None if one of them is no residue class.
    """
    if one.kind != "mod" or other.kind != "mod":
        return None
    modulus = same_expression(one.args[1], other.args[1], tolerance)
    if not modulus:
        return modulus
    left, right = (_residue(node.args[0]) for node in (one, other))
    difference = Node("mod", (Node("add", (left, Node("neg", (right,)))), one.args[1]))
    return same_expression(difference, number(0), tolerance)


def _residue(node: Node) -> Node:
    """The residue without the name before it."""
    return node.args[-1] if node.kind == "rel" else node
