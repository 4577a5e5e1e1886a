"""Whether two expressions are the same number, or the same function of their variables."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from random import Random
from typing import Any

from qwq_rl.verifiers.mathematics.comparing.exact import PRIME, NotExact, TooLarge, Undefined, rational, residue
from qwq_rl.verifiers.mathematics.comparing.numeric import Unworkable, context, evaluate
from qwq_rl.verifiers.mathematics.reading.node import Node, contains, every, symbols

CLOSE = Fraction(1, 10**40)
"""Relative difference below which two values of sixty digits are the same number."""
ENOUGH = 3
"""Points at which two functions must agree."""


def same_expression(one: Node, other: Node, tolerance: float = 1e-6) -> bool | None:
    """Whether the two are equal wherever both have a value; None where this cannot be told here.

    `tolerance` is relative, and used only between a decimal and a number that no decimal writes in full.
    """
    if one == other:
        return True
    variables = symbols(one) | symbols(other)
    if not variables:
        return _same_number(one, other, tolerance)
    return _same_function(one, other, sorted(variables))


def _same_number(one: Node, other: Node, tolerance: float) -> bool | None:
    try:
        left, right = rational(one), rational(other)
    except Undefined:
        return False
    if left is not None and right is not None:
        return left == right or _rounded(one, left, other, right, tolerance)
    if left is None and right is None:
        exactly = _same_residue(one, other, {})
        if exactly is not None:
            return exactly
    return _same_value(one, other, tolerance)


def _rounded(one: Node, left: Fraction, other: Node, right: Fraction, tolerance: float) -> bool:
    """Whether one is a decimal that can only approximate the other."""
    if contains(one, "dec") == contains(other, "dec"):
        return False
    written = right if contains(one, "dec") else left
    return not _terminates(written) and abs(left - right) <= Fraction(str(tolerance)) * max(abs(left), abs(right))


def _terminates(value: Fraction) -> bool:
    """Whether a decimal can write `value` in full."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _same_residue(one: Node, other: Node, at: dict[str, int]) -> bool | None:
    try:
        return residue(one, at) == residue(other, at)
    except (NotExact, TooLarge, Undefined):
        return None


def _same_value(one: Node, other: Node, tolerance: float) -> bool | None:
    """Compare two constants of which at least one is irrational."""
    bases = (10, 0) if _unsaid_logarithm(one) or _unsaid_logarithm(other) else (10,)
    found: bool | None = None
    for base in bases:
        try:
            left, right = evaluate(one, {}, base), evaluate(other, {}, base)
        except Undefined:
            found = found or False
            continue
        except Unworkable:
            return None
        is_decimal = _plain_decimal(one) != _plain_decimal(other)
        if _near(left, right, tolerance if is_decimal else CLOSE):
            return True
        found = False
    return found


def _unsaid_logarithm(node: Node) -> bool:
    return any(part.kind == "call" and part.value == "log" and len(part.args) == 1 for part in every(node))


def _plain_decimal(node: Node) -> bool:
    return contains(node, "dec") and rational(node) is not None


def _near(left: Any, right: Any, tolerance: float | Fraction) -> bool:
    mp = context()
    limit = (
        mp.mpf(tolerance.numerator) / tolerance.denominator if isinstance(tolerance, Fraction) else mp.mpf(tolerance)
    )
    scale = max(abs(left), abs(right))
    # A sum that cancels to zero leaves the rounding errors of its terms.
    return bool(abs(left - right) <= limit * scale or scale < mp.mpf(10) ** -50)


def _same_function(one: Node, other: Node, variables: list[str]) -> bool | None:
    """Test polynomial identities modulo a prime, others at points of several kinds."""
    random = Random(",".join(variables))
    for _ in range(2):
        same = _same_residue(one, other, {name: random.randrange(2, PRIME) for name in variables})
        if same is None:
            break
        if not same:
            return False
    else:
        return True
    is_complex = any(part.kind == "const" and part.value == "i" for node in (one, other) for part in every(node))
    seen = _agreement(one, other, variables, is_complex)
    return _agreement(one, other, variables, True) if seen is None and not is_complex else seen


def _agreement(one: Node, other: Node, variables: list[str], complex_too: bool) -> bool | None:
    base = 10 if not (_unsaid_logarithm(one) ^ _unsaid_logarithm(other)) else 0
    agreed = 0
    for point in _points(len(variables)):
        at = dict(zip(variables, point, strict=True))
        try:
            left, right = evaluate(one, at, base), evaluate(other, at, base)
        except Undefined:
            continue
        except Unworkable:
            return None
        if not complex_too and (left.imag != 0 or right.imag != 0):
            continue
        if not _near(left, right, CLOSE):
            return False
        agreed += 1
        if agreed >= ENOUGH + 2:
            return True
    return True if agreed >= ENOUGH else None


@lru_cache(maxsize=64)
def _fractions(count: int) -> tuple[tuple[Fraction, ...], ...]:
    """Points of several kinds: small and larger reals, negative ones, whole numbers small and large."""
    random = Random(count)
    ranges = [(0.1, 1.0), (-2.0, -0.2), (2, 7), (1.1, 3.0), (8, 30), (-9.0, -3.0), (0.01, 0.5), (10.0, 60.0), (31, 90)]
    points = []
    for low, high in ranges:
        whole = isinstance(low, int)
        values = [
            Fraction(random.randint(int(low), int(high))) if whole else Fraction(random.uniform(low, high))
            for _ in range(count)
        ]
        points.append(tuple(sorted(values, reverse=True)) if whole else tuple(values))
    return tuple(points)


def _points(count: int) -> Iterator[list[Any]]:
    mp = context()
    for point in _fractions(count):
        yield [mp.mpf(value.numerator) / value.denominator for value in point]
