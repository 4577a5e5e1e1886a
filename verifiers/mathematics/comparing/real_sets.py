"""Sets of real numbers as unions of intervals: from inequalities, intervals and sets, and compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qwq_rl.verifiers.mathematics.comparing.exact import Undefined
from qwq_rl.verifiers.mathematics.comparing.numeric import Unworkable, context, evaluate
from qwq_rl.verifiers.mathematics.reading.node import INFINITY, MINUS_INFINITY, Node, symbols

MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}

MOST_PARTS = 60
"""Conditions, or sides of a chain, that are worked out."""


class Interval(NamedTuple):
    """An interval with its ends as numbers of sixty digits, and whether each end belongs to it."""

    low: Any
    high: Any
    with_low: bool
    with_high: bool


Intervals = list[Interval]


class NoRealSet(Exception):
    """The answer is no set of real numbers that can be told here."""


def same_reals(one: Node, other: Node) -> bool | None:
    """Whether two answers are the same set of real numbers; None where one of them is no such set."""
    try:
        left, right = joined(intervals(one)), joined(intervals(other))
    except (NoRealSet, Undefined, Unworkable):
        return None
    return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))


def is_certain(node: Node) -> bool:
    """Whether `node` can only be a set of reals, not a point of the plane."""
    if node.kind in ("union", "cap", "minus"):
        return True
    if node.kind == "tuple" and len(node.args) == 2:
        return node.value in ("[)", "(]", "[]", "][") or any(part in (INFINITY, MINUS_INFINITY) for part in node.args)
    if node.kind == "rel":
        return all(sign in ("<", ">", "<=", ">=", "!=") for sign in node.value) and len(symbols(node)) == 1
    if node.kind == "such":
        return len(node.args) > 1 and len(symbols(node)) <= 1
    if node.kind == "list":
        return all(is_certain(part) for part in node.args)
    return (node.kind == "in" and is_certain(node.args[1])) or node == Node("sym", (), "ℝ")


def intervals(node: Node) -> Intervals:
    """The intervals of `node`, unjoined; raises NoRealSet, Undefined or Unworkable."""
    if node.kind == "in":
        return intervals(node.args[1])
    if node == Node("sym", (), "ℝ"):
        return [_whole_line()]
    if node.kind == "set":
        return [_point(part) for part in node.args]
    if node.kind == "tuple" and len(node.args) == 2:
        return [_interval(node)]
    if node.kind == "union":
        return intervals(node.args[0]) + intervals(node.args[1])
    if node.kind == "cap":
        return common(intervals(node.args[0]), intervals(node.args[1]))
    if node.kind == "minus":
        return common(intervals(node.args[0]), complement(joined(intervals(node.args[1]))))
    if node.kind == "such":
        return _conditions([part for part in node.args[1:] if not _says_real(part)], node.value)
    if node.kind == "rel":
        return _relation(node)
    if node.kind == "list":
        return _conditions([part for part in node.args if not _says_real(part)], node.value)
    raise NoRealSet


def _says_real(node: Node) -> bool:
    return node.kind == "in" and node.args[1] == Node("sym", (), "ℝ")


def _conditions(parts: Sequence[Node], joint: str) -> Intervals:
    """Conditions that hold together; where none could, or "or" stands between, each of them is enough."""
    if len(parts) > MOST_PARTS:
        raise NoRealSet
    if len({name for part in parts for name in symbols(part)}) > 1:
        raise NoRealSet
    found = [intervals(part) for part in parts]
    if not found:
        return [_whole_line()]
    together = found[0]
    for one in found[1:]:
        together = common(together, one)
    if joint == "or" or (not together and len(found) > 1):
        return [interval for one in found for interval in one]
    return together


def _whole_line() -> Interval:
    mp = context()
    return Interval(-mp.inf, mp.inf, False, False)


def _number(node: Node) -> Any:
    mp = context()
    if node == INFINITY:
        return mp.inf
    if node == MINUS_INFINITY:
        return -mp.inf
    value = evaluate(node, {})
    if value.imag != 0:
        raise NoRealSet
    return value.real


def _point(node: Node) -> Interval:
    value = _number(node)
    return Interval(value, value, True, True)


def _interval(node: Node) -> Interval:
    brackets = {"][": "()"}.get(node.value, node.value)
    low, high = (_number(part) for part in node.args)
    mp = context()
    if low > high:
        raise NoRealSet
    return Interval(low, high, brackets[0] == "[" and low != -mp.inf, brackets[1] == "]" and high != mp.inf)


def _relation(node: Node) -> Intervals:
    """A chain of comparisons of one variable with numbers: each is linear in it, or in its absolute value."""
    if len(node.args) > MOST_PARTS:
        raise NoRealSet
    found = [_whole_line()]
    for left, sign, right in zip(node.args, node.value, node.args[1:], strict=False):
        found = common(found, _comparison(left, sign, right))
    return found


def _comparison(left: Node, sign: str, right: Node) -> Intervals:
    names = symbols(left) | symbols(right)
    if len(names) != 1 or sign not in MIRRORED:
        raise NoRealSet
    for inner, outer, direction in ((left, right, sign), (right, left, MIRRORED[sign])):
        if inner.kind == "abs" and not symbols(outer):
            return _absolute(inner.args[0], direction, outer)
    name = next(iter(names))
    slope, offset = _line(Node("add", (left, Node("neg", (right,)))), name)
    if slope == 0:
        raise NoRealSet
    return _ray(-offset / slope, sign if slope > 0 else MIRRORED[sign])


def _absolute(inner: Node, sign: str, bound: Node) -> Intervals:
    low = _comparison(inner, MIRRORED[sign], Node("neg", (bound,)))
    high = _comparison(inner, sign, bound)
    if sign in ("<", "<="):
        return common(low, high)
    if sign in (">", ">="):
        return low + high
    raise NoRealSet


def _line(node: Node, name: str) -> tuple[Any, Any]:
    """Slope and offset of `node`, linear in `name`; raises NoRealSet where it is not."""
    mp = context()
    offset = evaluate(node, {name: mp.mpf(0)})
    slope = evaluate(node, {name: mp.mpf(1)}) - offset
    for place in (mp.mpf(-7) / 3, mp.mpf(5)):
        value = evaluate(node, {name: place})
        if abs(value - (offset + slope * place)) > mp.mpf(10) ** -35 * (1 + abs(value)):
            raise NoRealSet
    if slope.imag != 0 or offset.imag != 0:
        raise NoRealSet
    return slope.real, offset.real


def _ray(end: Any, sign: str) -> Intervals:
    mp = context()
    if sign in ("<", "<="):
        return [Interval(-mp.inf, end, False, sign == "<=")]
    if sign in (">", ">="):
        return [Interval(end, mp.inf, sign == ">=", False)]
    if sign == "=":
        return [Interval(end, end, True, True)]
    return [Interval(-mp.inf, end, False, False), Interval(end, mp.inf, False, False)]


def common(one: Intervals, other: Intervals) -> Intervals:
    """What two unions of intervals have in common."""
    found = []
    for left in one:
        for right in other:
            low = max(left.low, right.low)
            high = min(left.high, right.high)
            with_low = all(part.with_low for part in (left, right) if part.low == low)
            with_high = all(part.with_high for part in (left, right) if part.high == high)
            if low < high or (low == high and with_low and with_high):
                found.append(Interval(low, high, with_low, with_high))
    return found


def complement(one: Intervals) -> Intervals:
    """What is outside of joined intervals."""
    found = [_whole_line()]
    for part in one:
        mp = context()
        outside = [
            Interval(-mp.inf, part.low, False, not part.with_low),
            Interval(part.high, mp.inf, not part.with_high, False),
        ]
        found = common(found, [side for side in outside if side.low < side.high])
    return found


def joined(parts: Intervals) -> Intervals:
    """The same set in its fewest intervals, in order."""
    found: Intervals = []
    for part in sorted(parts, key=lambda one: (one.low, not one.with_low)):
        last = found[-1] if found else None
        if last and (part.low < last.high or (_equal(part.low, last.high) and (part.with_low or last.with_high))):
            with_high = (
                last.with_high or part.with_high
                if _equal(part.high, last.high)
                else (part.with_high if part.high > last.high else last.with_high)
            )
            found[-1] = Interval(last.low, max(last.high, part.high), last.with_low, with_high)
        else:
            found.append(part)
    return found


def _equal(one: Any, other: Any) -> bool:
    mp = context()
    if mp.isinf(one) or mp.isinf(other):
        return bool(one == other)
    return bool(abs(one - other) <= mp.mpf(10) ** -30 * (1 + abs(one)))


def _same(one: Interval, other: Interval) -> bool:
    return (
        _equal(one.low, other.low)
        and _equal(one.high, other.high)
        and (one.with_low, one.with_high) == (other.with_low, other.with_high)
    )
