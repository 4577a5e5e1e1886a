"""Exact values of expressions without variables, and values modulo a prime.

Values modulo a prime decide whether two polynomials are identical.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from qwq_rl.verifiers.mathematics.reading.node import Node

MOST_BITS = 20_000
"""The most bits of a numerator or denominator that is written out."""
LARGEST_FACTORIAL = 1500
PRIME = 2**61 - 1
"""The modulus of `residue`."""


class NotExact(Exception):
    """The value of the expression cannot be written as a fraction here."""


class TooLarge(Exception):
    """The value has more digits than are computed."""


class Undefined(Exception):
    """The expression has no value, for example because of a division by zero."""


def rational(node: Node) -> Fraction | None:
    """The exact value of `node`. Raises Undefined.

    None if the value is irrational or too large, or if `node` has variables.
    """
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
    return _rare_kind(node)


def _rare_kind(node: Node) -> Fraction:
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


def _divided(numerator: Fraction, denominator: Fraction) -> Fraction:
    if denominator == 0:
        raise Undefined("a division by zero")
    return _bounded(numerator / denominator)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _power(_root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    # Here 0^0 is 1.
    if base == 0 and exponent <= 0:
        if exponent == 0:
            return Fraction(1)
        raise Undefined("a division by zero")
    # Estimate the size before the power is computed.
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > 1 and size * abs(exponent) > MOST_BITS:
        raise TooLarge
    if size <= 1:  # 1 and -1
        return base if exponent.numerator % 2 else abs(base)
    return Fraction(base ** int(exponent))


def _root(value: Fraction, index: Fraction) -> Fraction:
    if index.denominator != 1 or not 0 < index <= 64:
        raise NotExact
    degree = int(index)
    if value < 0:
        if degree % 2 == 0:
            raise NotExact
        return -_root(-value, index)
    return Fraction(_whole_root(value.numerator, degree), _whole_root(value.denominator, degree))


def _whole_root(value: int, index: int) -> int:
    if index == 1:
        return value
    if index == 2:
        root = math.isqrt(value)
    else:
        # Larger values do not fit in a float; its rounding may be off by one.
        root = round(value ** (1 / index)) if value.bit_length() < 900 else 0
        root = next(
            (candidate for candidate in (root - 1, root, root + 1) if candidate >= 0 and candidate**index == value), -1
        )
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
    total, chosen = _whole(n), _whole(k)
    if total < 0 or chosen < 0:
        raise NotExact
    if min(chosen, total - chosen) > 2 * LARGEST_FACTORIAL:
        raise TooLarge
    return Fraction(math.comb(total, chosen))


def _logarithm(value: Fraction, base: Fraction) -> Fraction:
    """The logarithm if it is a whole number, as in `\\log_2 8`. Else raises NotExact."""
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
    "log": lambda value, *base: _logarithm(value, base[0]) if base else _log_without_base(value),
    "ln": lambda value: _log_without_base(value),
    "sin": lambda value: _at_zero(value, 0),
    "tan": lambda value: _at_zero(value, 0),
    "cos": lambda value: _at_zero(value, 1),
}


def _log_without_base(value: Fraction) -> Fraction:
    """A logarithm without a base: only that of 1 does not depend on the base."""
    if value == 1:
        return Fraction(0)
    raise NotExact


def _at_zero(value: Fraction, result: int) -> Fraction:
    """The value of a function whose only rational argument with a rational value is 0."""
    if value == 0:
        return Fraction(result)
    raise NotExact


def residue(node: Node, at: Mapping[str, int], modulus: int = PRIME) -> int:
    """`node` modulo a prime, with its variables set to `at`. Raises NotExact, TooLarge or Undefined.

    If two rational functions agree at a random point modulo a 61-bit prime, they are the same, except with a
    probability of about their degree divided by 2^61 (Schwartz 1980, Zippel 1979). Powers too large to be written out
    are decided in the same way.
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


def _quotient(numerator: int, denominator: int, modulus: int) -> int:
    if modulus != PRIME and denominator != 1:
        raise NotExact  # modulo a number that is not prime there may be no inverse
    if denominator % modulus == 0:
        raise Undefined("a division by zero")
    return numerator * pow(denominator, -1, modulus) % modulus if denominator != 1 else numerator % modulus


def _power_residue(node: Node, variables: Mapping[str, int], modulus: int) -> int:
    base = residue(node.args[0], variables, modulus)
    try:
        exponent = _value(node.args[1])
    except TooLarge:
        if modulus != PRIME or base == 0:
            raise NotExact from None
        # Fermat's little theorem: modulo a prime p, exponents count modulo p - 1.
        return pow(base, residue(node.args[1], {}, modulus - 1), modulus)
    if exponent.denominator != 1 or (base == 0 and exponent <= 0) or (exponent < 0 and modulus != PRIME):
        raise NotExact
    return pow(base, int(exponent), modulus)
