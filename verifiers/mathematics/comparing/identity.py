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
"""Two values of sixty digits are the same number if their relative difference is at most this."""
ENOUGH = 3
"""At how many points two functions must agree, at least."""


def same_expression(one: Node, other: Node, tolerance: float = 1e-6) -> bool | None:
    """Whether the two are equal wherever both have a value. None if this cannot be decided here.

    `tolerance` is relative. It applies only between a decimal and a number that no decimal writes in full.
    """
    if one == other:
        return True
    variables = symbols(one) | symbols(other)
    if not variables:
        return _same_number(one, other, tolerance)
    return _same_function(one, other, sorted(variables))


def _same_number(first: Node, second: Node, tolerance: float) -> bool | None:
    """Compare two expressions without variables: exactly if possible, else by sixty digits."""
    try:
        first_value, second_value = rational(first), rational(second)
    except Undefined:
        return False
    if first_value is not None and second_value is not None:
        return first_value == second_value or _is_rounded(first, first_value, second, second_value, tolerance)
    if first_value is None and second_value is None:
        # Huge powers such as 7^(10^9) are too large to be written out, but have a residue.
        same_residue = _same_residue(first, second, {})
        if same_residue is not None:
            return same_residue
    return _same_value(first, second, tolerance)


def _is_rounded(first: Node, first_value: Fraction, second: Node, second_value: Fraction, tolerance: float) -> bool:
    """Whether one number is a decimal that can only approximate the other number."""
    if contains(first, "dec") == contains(second, "dec"):
        return False
    exact = second_value if contains(first, "dec") else first_value
    return not _terminates(exact) and abs(first_value - second_value) <= Fraction(str(tolerance)) * max(
        abs(first_value), abs(second_value)
    )


def _terminates(value: Fraction) -> bool:
    """Whether a decimal can write `value` in full."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _same_residue(first: Node, second: Node, point: dict[str, int]) -> bool | None:
    """Compare values modulo a prime. None if one of them has no such value."""
    try:
        return residue(first, point) == residue(second, point)
    except (NotExact, TooLarge, Undefined):
        return None


def _same_value(first: Node, second: Node, tolerance: float) -> bool | None:
    """Compare two constants of which at least one is irrational."""
    bases = (10, 0) if _has_log_without_base(first) or _has_log_without_base(second) else (10,)
    result: bool | None = None
    for base in bases:
        try:
            first_value, second_value = evaluate(first, {}, base), evaluate(second, {}, base)
        except Undefined:
            result = result or False
            continue
        except Unworkable:
            return None
        is_decimal = _is_plain_decimal(first) != _is_plain_decimal(second)
        if _near(first_value, second_value, tolerance if is_decimal else CLOSE):
            return True
        result = False
    return result


def _has_log_without_base(node: Node) -> bool:
    """Whether there is a `log` without a base: it may mean base 10 or e."""
    return any(part.kind == "call" and part.value == "log" and len(part.args) == 1 for part in every(node))


def _is_plain_decimal(node: Node) -> bool:
    """Whether a number is rational and written as a decimal."""
    return contains(node, "dec") and rational(node) is not None


def _near(first: Any, second: Any, tolerance: float | Fraction) -> bool:
    """Whether two values agree within the relative `tolerance`."""
    mp = context()
    limit = (
        mp.mpf(tolerance.numerator) / tolerance.denominator if isinstance(tolerance, Fraction) else mp.mpf(tolerance)
    )
    scale = max(abs(first), abs(second))
    # A sum that cancels to zero leaves the rounding errors of its terms.
    return bool(abs(first - second) <= limit * scale or scale < mp.mpf(10) ** -50)


def _same_function(first: Node, second: Node, variables: list[str]) -> bool | None:
    """Compare polynomials modulo a prime, and other functions at sample points of several kinds."""
    # Seeded by the names, so that the verdict is the same in every run.
    random = Random(",".join(variables))
    for _ in range(2):
        same = _same_residue(first, second, {name: random.randrange(2, PRIME) for name in variables})
        if same is None:
            break
        if not same:
            return False
    else:
        return True
    # Complex values are skipped at first: outside of its real domain a function may have several values.
    is_complex = any(part.kind == "const" and part.value == "i" for node in (first, second) for part in every(node))
    agreement = _agreement(first, second, variables, is_complex)
    return _agreement(first, second, variables, True) if agreement is None and not is_complex else agreement


def _agreement(first: Node, second: Node, variables: list[str], complex_too: bool) -> bool | None:
    """Whether two functions agree at the sample points. None if too few points give both a value."""
    # If only one of them has a `log` without a base, it is taken as ln.
    base = 10 if not (_has_log_without_base(first) ^ _has_log_without_base(second)) else 0
    agreed = 0
    for point in _points(len(variables)):
        values = dict(zip(variables, point, strict=True))
        try:
            first_value, second_value = evaluate(first, values, base), evaluate(second, values, base)
        except Undefined:
            continue
        except Unworkable:
            return None
        if not complex_too and (first_value.imag != 0 or second_value.imag != 0):
            continue
        if not _near(first_value, second_value, CLOSE):
            return False
        agreed += 1
        if agreed >= ENOUGH + 2:
            return True
    return True if agreed >= ENOUGH else None


@lru_cache(maxsize=64)
def _fractions(count: int) -> tuple[tuple[Fraction, ...], ...]:
    """Points of several kinds: small and large real numbers, negative ones, small and large whole numbers."""
    random = Random(count)
    ranges = [(0.1, 1.0), (-2.0, -0.2), (2, 7), (1.1, 3.0), (8, 30), (-9.0, -3.0), (0.01, 0.5), (10.0, 60.0), (31, 90)]
    points = []
    for low, high in ranges:
        is_whole = isinstance(low, int)
        values = [
            Fraction(random.randint(int(low), int(high))) if is_whole else Fraction(random.uniform(low, high))
            for _ in range(count)
        ]
        points.append(tuple(sorted(values, reverse=True)) if is_whole else tuple(values))
    return tuple(points)


def _points(count: int) -> Iterator[list[Any]]:
    """The sample points, as numbers of sixty digits."""
    mp = context()
    for point in _fractions(count):
        yield [mp.mpf(value.numerator) / value.denominator for value in point]
