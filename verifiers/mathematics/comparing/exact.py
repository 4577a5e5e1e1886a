"""Exact values of expressions without variables, and values modulo a prime, which decide polynomial identities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from qwq_rl.verifiers.mathematics.reading.node import Node

MOST_BITS = 20_000
"""Of a numerator or denominator that is still written out."""
LARGEST_FACTORIAL = 1500
PRIME = 2**61 - 1


class NotExact(Exception):
    """The expression has no value that can be written as a fraction here."""


class TooLarge(Exception):
    """The value has more digits than are worked out."""


class Undefined(Exception):
    """The expression has no value: a division by zero, say."""


def rational(node: Node) -> Fraction | None:
    """The exact value of `node`, or None where it is irrational, has variables or is too large; raises Undefined."""
    try:
        return _value(node)
    except (NotExact, TooLarge):
        return None


def _value(node: Node) -> Fraction:
    kind = node.kind
    if kind in ("num", "dec"):
        return _bounded(node.value)
    if kind == "add":
        return _bounded(sum((_value(part) for part in node.args), Fraction(0)))
    if kind == "neg":
        return -_value(node.args[0])
    if kind == "mul":
        product = Fraction(1)
        for part in node.args:
            product = _bounded(product * _value(part))
        return product
    if kind == "div":
        return _divided(_value(node.args[0]), _value(node.args[1]))
    if kind == "pow":
        return _power(_value(node.args[0]), _value(node.args[1]))
    if kind == "root":
        return _root(_value(node.args[0]), _value(node.args[1]))
    return _rarer(node)


def _rarer(node: Node) -> Fraction:
    if node.kind == "base":
        return Fraction(_in_base(*node.value))
    values = [_value(part) for part in node.args]
    if node.kind == "percent":
        return values[0] / 100
    if node.kind == "abs":
        return abs(values[0])
    if node.kind == "fact":
        return Fraction(_factorial(values[0]))
    if node.kind == "mod":
        return _modulo(*values)
    if node.kind == "call" and node.value in FUNCTIONS:
        return FUNCTIONS[node.value](*values)
    raise NotExact


def _in_base(digits: str, base: int) -> int:
    try:
        return int(digits, base)
    except ValueError as error:
        raise Undefined(f"{digits} is no number in base {base}") from error


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MOST_BITS or value.denominator.bit_length() > MOST_BITS:
        raise TooLarge
    return value


def _divided(over: Fraction, under: Fraction) -> Fraction:
    if under == 0:
        raise Undefined("a division by zero")
    return _bounded(over / under)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _power(_root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    if base == 0 and exponent <= 0:
        if exponent == 0:
            return Fraction(1)
        raise Undefined("a division by zero")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > 1 and size * abs(exponent) > MOST_BITS:
        raise TooLarge
    if size <= 1:  # 1 and -1
        return base if exponent.numerator % 2 else abs(base)
    return Fraction(base ** int(exponent))


def _root(value: Fraction, index: Fraction) -> Fraction:
    if index.denominator != 1 or not 0 < index <= 64:
        raise NotExact
    n = int(index)
    if value < 0:
        if n % 2 == 0:
            raise NotExact
        return -_root(-value, index)
    return Fraction(_whole_root(value.numerator, n), _whole_root(value.denominator, n))


def _whole_root(value: int, index: int) -> int:
    if index == 1:
        return value
    if index == 2:
        root = math.isqrt(value)
    else:
        root = round(value ** (1 / index)) if value.bit_length() < 900 else 0
        root = next((one for one in (root - 1, root, root + 1) if one >= 0 and one**index == value), -1)
    if root < 0 or root**index != value:
        raise NotExact
    return root


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise NotExact
    return int(value)


def _factorial(value: Fraction, step: int = 1) -> int:
    whole = _whole(value)
    if whole < 0:
        raise Undefined("a factorial of a negative number")
    if whole > LARGEST_FACTORIAL:
        raise TooLarge
    return math.factorial(whole) if step == 1 else math.prod(range(whole, 0, -step))


def _modulo(value: Fraction, modulus: Fraction) -> Fraction:
    if modulus == 0:
        raise Undefined("a division by zero")
    return value % modulus


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    over, under = _whole(n), _whole(k)
    if over < 0 or under < 0:
        raise NotExact
    if min(under, over - under) > 2 * LARGEST_FACTORIAL:
        raise TooLarge
    return Fraction(math.comb(over, under))


def _logarithm(value: Fraction, base: Fraction) -> Fraction:
    """Where it is a whole number: `\\log_2 8`."""
    if value <= 0 or base <= 0 or base == 1:
        raise Undefined("a logarithm that does not exist")
    guess = round((_log(value)) / _log(base))
    if abs(guess) <= 4000 and _power(base, Fraction(guess)) == value:
        return Fraction(guess)
    raise NotExact


def _log(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)


FUNCTIONS: Mapping[str, Callable[..., Fraction]] = {
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "gcd": lambda *values: Fraction(math.gcd(*(_whole(value) for value in values))),
    "lcm": lambda *values: _bounded(Fraction(math.lcm(*(_whole(value) for value in values)))),
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "sgn": lambda value: Fraction((value > 0) - (value < 0)),
    "binom": _binomial,
    "double factorial": lambda value: Fraction(_factorial(value, 2)),
    "log": lambda value, *base: _logarithm(value, base[0]) if base else _unbased(value),
    "ln": lambda value: _unbased(value),
    "sin": lambda value: _at_zero(value, 0),
    "tan": lambda value: _at_zero(value, 0),
    "cos": lambda value: _at_zero(value, 1),
}


def _unbased(value: Fraction) -> Fraction:
    """A logarithm to an unsaid base."""
    if value == 1:
        return Fraction(0)
    raise NotExact


def _at_zero(value: Fraction, found: int) -> Fraction:
    if value == 0:
        return Fraction(found)
    raise NotExact


def residue(node: Node, at: Mapping[str, int], modulus: int = PRIME) -> int:
    """`node` modulo a prime, with its variables set to `at`; raises NotExact or Undefined.

    Two rational functions that agree at a random point modulo a 61-bit prime are the same but for a chance of about
    their degree in 2^61 (Schwartz 1980, Zippel 1979); powers too large to write out are decided in the same way.
    """
    kind = node.kind
    if kind == "sym":
        if node.value not in at:
            raise NotExact
        return at[node.value]
    if kind in ("num", "dec"):
        return _quotient(node.value.numerator, node.value.denominator, modulus)
    if kind == "add":
        return sum(residue(part, at, modulus) for part in node.args) % modulus
    if kind == "neg":
        return -residue(node.args[0], at, modulus) % modulus
    if kind == "mul":
        product = 1
        for part in node.args:
            product = product * residue(part, at, modulus) % modulus
        return product
    if kind == "div":
        return _quotient(residue(node.args[0], at, modulus), residue(node.args[1], at, modulus), modulus)
    if kind == "percent":
        return _quotient(residue(node.args[0], at, modulus), 100, modulus)
    if kind == "pow":
        return _power_residue(node, at, modulus)
    if kind == "fact":
        return _factorial(_value(node.args[0])) % modulus
    if kind == "call" and node.value == "binom":
        return _value(node).numerator % modulus
    raise NotExact


def _quotient(over: int, under: int, modulus: int) -> int:
    if modulus != PRIME and under != 1:
        raise NotExact  # there may be no inverse
    if under % modulus == 0:
        raise Undefined("a division by zero")
    return over * pow(under, -1, modulus) % modulus if under != 1 else over % modulus


def _power_residue(node: Node, at: Mapping[str, int], modulus: int) -> int:
    base = residue(node.args[0], at, modulus)
    try:
        exponent = _value(node.args[1])
    except TooLarge:
        if modulus != PRIME or base == 0:
            raise NotExact from None
        return pow(base, residue(node.args[1], {}, modulus - 1), modulus)  # Fermat's little theorem
    if exponent.denominator != 1 or (base == 0 and exponent <= 0) or (exponent < 0 and modulus != PRIME):
        raise NotExact
    return pow(base, int(exponent), modulus)
