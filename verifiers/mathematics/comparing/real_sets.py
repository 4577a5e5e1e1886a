"""Sets of real numbers as unions of intervals.

They are built from inequalities, intervals and sets, and then compared with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qwq_rl.verifiers.mathematics.comparing.exact import Undefined
from qwq_rl.verifiers.mathematics.comparing.numeric import Unworkable, context, evaluate
from qwq_rl.verifiers.mathematics.reading.node import INFINITY, MINUS_INFINITY, Node, symbols

MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}

MOST_PARTS = 60
"""The most conditions, or sides of a chain, that are computed."""


class Interval(NamedTuple):
    """An interval: its ends as numbers of sixty digits, and whether each end belongs to it."""

    low: Any
    high: Any
    with_low: bool
    with_high: bool


Intervals = list[Interval]


class NoRealSet(Exception):
    """The answer is no set of real numbers, or none that is understood here."""


def same_reals(one: Node, other: Node) -> bool | None:
    """Whether two answers are the same set of real numbers. None if one of them is no such set."""
    try:
        left, right = joined(intervals(one)), joined(intervals(other))
    except (NoRealSet, Undefined, Unworkable):
        return None
    return len(left) == len(right) and all(_same(first, second) for first, second in zip(left, right, strict=True))


def is_certain(node: Node) -> bool:
    """Whether `node` can only be a set of reals, and not a point of the plane."""
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
    """The intervals of `node`, which may overlap. Raises NoRealSet, Undefined or Unworkable."""
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
    """Whether `node` only says that something is a real number."""
    return node.kind == "in" and node.args[1] == Node("sym", (), "ℝ")


def _conditions(parts: Sequence[Node], joint: str) -> Intervals:
    """The set of several conditions, which must all hold.

    If "or" joins them, or no number meets all of them, one of them is enough.
    """
    if len(parts) > MOST_PARTS:
        raise NoRealSet
    if len({name for part in parts for name in symbols(part)}) > 1:
        raise NoRealSet
    sets = [intervals(part) for part in parts]
    if not sets:
        return [_whole_line()]
    intersection = sets[0]
    for condition_set in sets[1:]:
        intersection = common(intersection, condition_set)
    if joint == "or" or (not intersection and len(sets) > 1):
        return [interval for condition_set in sets for interval in condition_set]
    return intersection


def _whole_line() -> Interval:
    mp = context()
    return Interval(-mp.inf, mp.inf, False, False)


def _number(node: Node) -> Any:
    """The value of an end of an interval; it must be real or infinite."""
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
    """The set of a chain of comparisons of one variable with numbers.

    Each comparison must be linear in the variable, or in its absolute value.
    """
    if len(node.args) > MOST_PARTS:
        raise NoRealSet
    result = [_whole_line()]
    for left, sign, right in zip(node.args, node.value, node.args[1:], strict=False):
        result = common(result, _comparison(left, sign, right))
    return result


def _comparison(left: Node, sign: str, right: Node) -> Intervals:
    """The set of one comparison."""
    names = symbols(left) | symbols(right)
    if len(names) != 1 or sign not in MIRRORED:
        raise NoRealSet
    for inner, outer, direction in ((left, right, sign), (right, left, MIRRORED[sign])):
        if inner.kind == "abs" and not symbols(outer):
            return _absolute(inner.args[0], direction, outer)
    name = next(iter(names))
    # left - right = slope * name + offset; a division by a negative slope turns the sign around.
    slope, offset = _line(Node("add", (left, Node("neg", (right,)))), name)
    if slope == 0:
        raise NoRealSet
    return _ray(-offset / slope, sign if slope > 0 else MIRRORED[sign])


def _absolute(inner: Node, sign: str, bound: Node) -> Intervals:
    """The set of a comparison of an absolute value with a number."""
    low = _comparison(inner, MIRRORED[sign], Node("neg", (bound,)))
    high = _comparison(inner, sign, bound)
    if sign in ("<", "<="):
        return common(low, high)
    if sign in (">", ">="):
        return low + high
    raise NoRealSet


def _line(node: Node, name: str) -> tuple[Any, Any]:
    """The slope and offset of `node`, which must be linear in `name`. Raises NoRealSet if it is not."""
    mp = context()
    offset = evaluate(node, {name: mp.mpf(0)})
    slope = evaluate(node, {name: mp.mpf(1)}) - offset
    # Two points fix the line; two more show whether `node` is one.
    for point in (mp.mpf(-7) / 3, mp.mpf(5)):
        value = evaluate(node, {name: point})
        if abs(value - (offset + slope * point)) > mp.mpf(10) ** -35 * (1 + abs(value)):
            raise NoRealSet
    if slope.imag != 0 or offset.imag != 0:
        raise NoRealSet
    return slope.real, offset.real


def _ray(end: Any, sign: str) -> Intervals:
    """The numbers that are in the relation `sign` to `end`."""
    mp = context()
    if sign in ("<", "<="):
        return [Interval(-mp.inf, end, False, sign == "<=")]
    if sign in (">", ">="):
        return [Interval(end, mp.inf, sign == ">=", False)]
    if sign == "=":
        return [Interval(end, end, True, True)]
    return [Interval(-mp.inf, end, False, False), Interval(end, mp.inf, False, False)]


def common(one: Intervals, other: Intervals) -> Intervals:
    """The intersection of two unions of intervals."""
    result = []
    for left in one:
        for right in other:
            low = max(left.low, right.low)
            high = min(left.high, right.high)
            with_low = all(part.with_low for part in (left, right) if part.low == low)
            with_high = all(part.with_high for part in (left, right) if part.high == high)
            if low < high or (low == high and with_low and with_high):
                result.append(Interval(low, high, with_low, with_high))
    return result


def complement(one: Intervals) -> Intervals:
    """The real numbers outside of joined intervals."""
    result = [_whole_line()]
    for part in one:
        mp = context()
        outside = [
            Interval(-mp.inf, part.low, False, not part.with_low),
            Interval(part.high, mp.inf, not part.with_high, False),
        ]
        result = common(result, [side for side in outside if side.low < side.high])
    return result


def joined(parts: Intervals) -> Intervals:
    """The same set in as few intervals as possible, in order."""
    result: Intervals = []
    for part in sorted(parts, key=lambda interval: (interval.low, not interval.with_low)):
        last = result[-1] if result else None
        if last and (part.low < last.high or (_equal(part.low, last.high) and (part.with_low or last.with_high))):
            with_high = (
                last.with_high or part.with_high
                if _equal(part.high, last.high)
                else (part.with_high if part.high > last.high else last.with_high)
            )
            result[-1] = Interval(last.low, max(last.high, part.high), last.with_low, with_high)
        else:
            result.append(part)
    return result


def _equal(first: Any, second: Any) -> bool:
    """Whether two ends are the same number, up to rounding errors."""
    mp = context()
    if mp.isinf(first) or mp.isinf(second):
        return bool(first == second)
    return bool(abs(first - second) <= mp.mpf(10) ** -30 * (1 + abs(first)))


def _same(first: Interval, second: Interval) -> bool:
    return (
        _equal(first.low, second.low)
        and _equal(first.high, second.high)
        and (first.with_low, first.with_high) == (second.with_low, second.with_high)
    )
