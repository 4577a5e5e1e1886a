"""Values of expressions to sixty digits, for expressions with roots, logarithms or angles."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from mpmath import MPContext

from qwq_rl.verifiers.mathematics.comparing.exact import Undefined
from qwq_rl.verifiers.mathematics.reading.node import Node

DIGITS = 60
MOST_EXPONENT = 1_000_000
"""The largest power of two of a value that is still computed."""
_LOCAL = threading.local()


class Unworkable(Exception):
    """The expression has a part without a number as its value, such as an integral or an unknown function."""


def context() -> Any:
    """The arithmetic of this thread. mpmath keeps its precision in an object that threads must not share."""
    mp = getattr(_LOCAL, "context", None)
    if mp is None:
        mp = _LOCAL.context = MPContext()
        mp.dps = DIGITS
    return mp


def evaluate(node: Node, at: Mapping[str, Any], log_base: int = 10) -> Any:
    """The value of `node` with its variables set to `at`, real or complex.

    `log_base`: the base of logarithms that name none; 10, or 0 for e. Raises Undefined or Unworkable.
    """
    try:
        return _evaluate(context(), node, at, log_base)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Undefined(str(error)) from error


def _evaluate(mp: Any, node: Node, variables: Mapping[str, Any], log_base: int) -> Any:
    kind = node.kind
    if kind in ("num", "dec"):
        return mp.mpf(node.value.numerator) / node.value.denominator
    if kind == "sym":
        if node.value not in variables:
            raise Unworkable(node.value)
        return variables[node.value]
    if kind == "const":
        return _constant(mp, node.value)
    values = [_evaluate(mp, part, variables, log_base) for part in node.args]
    if kind == "add":
        return mp.fsum(values)
    if kind == "neg":
        return -values[0]
    if kind == "mul":
        return mp.fprod(values)
    if kind == "div":
        return values[0] / values[1]
    if kind == "pow":
        return _power(mp, values[0], values[1], node.args[1])
    if kind == "root":
        return _root(mp, values[0], values[1])
    return _rare_kind(mp, node, values, log_base)


def _rare_kind(mp: Any, node: Node, values: list[Any], log_base: int) -> Any:
    kind = node.kind
    if kind == "abs":
        return abs(values[0])
    if kind == "percent":
        return values[0] / 100
    if kind == "degree":
        return values[0] * mp.pi / 180
    if kind == "fact":
        return _gamma(mp, values[0] + 1)
    if kind == "base":
        return mp.mpf(int(node.value[0], node.value[1]))
    if kind == "mod":
        return values[0] - values[1] * mp.floor(values[0] / values[1])
    if kind == "call":
        return _call(mp, node.value, values, log_base)
    raise Unworkable(kind)


def _constant(mp: Any, name: str) -> Any:
    if name == "pi":
        return +mp.pi
    if name == "e":
        return +mp.e
    if name == "i":
        return mp.mpc(0, 1)
    raise Undefined("infinity is no number")


def _power(mp: Any, base: Any, exponent: Any, written: Node) -> Any:
    """`base` to the power `exponent`; `written` is the exponent as it is in the answer."""
    if base == 0:
        if mp.re(exponent) <= 0 and exponent != 0:
            raise Undefined("a division by zero")
        return mp.mpf(0 if exponent else 1)
    if abs(exponent) * abs(mp.log(abs(base), 2)) > MOST_EXPONENT:
        raise Undefined("too large to be worked out")
    if written.kind == "div" and mp.im(base) == 0 and base < 0 and mp.im(exponent) == 0:
        denominator = written.args[1]
        if (
            denominator.kind == "num"
            and denominator.value % 2 == 1
            and mp.isint(exponent * denominator.value.numerator)
        ):
            sign = -1 if int(mp.nint(exponent * denominator.value.numerator)) % 2 else 1
            # The real root, as people write it: (-8)^(1/3) is -2. mpmath would give the complex one.
            return sign * (-base) ** exponent
    if mp.im(exponent) == 0 and mp.isint(exponent):
        return base ** int(exponent)
    return mp.power(base, exponent)


def _root(mp: Any, value: Any, index: Any) -> Any:
    if mp.im(index) != 0 or index <= 0:
        raise Undefined("a root that does not exist")
    if mp.im(value) == 0 and value < 0 and mp.isint(index) and int(index) % 2 == 1:
        return -mp.root(-value, int(index))
    return mp.sqrt(value) if index == 2 else mp.power(value, 1 / index)


def _gamma(mp: Any, value: Any) -> Any:
    if abs(value) > 50_000:
        raise Undefined("too large to be worked out")
    return mp.gamma(value)


def _call(mp: Any, name: str, values: list[Any], log_base: int) -> Any:
    value = values[0] if values else None
    if name in ("sin", "cos", "sinh", "cosh", "tanh", "arctan", "arcsinh"):
        function = {"arctan": "atan", "arcsinh": "asinh"}.get(name, name)
        return getattr(mp, function)(_bounded_angle(mp, value))
    if name in ("tan", "sec", "csc", "cot"):
        return _quotient_of_angles(mp, name, _bounded_angle(mp, value))
    if name in ("arcsin", "arccos", "arccosh", "arctanh"):
        return getattr(mp, name.replace("arc", "a"))(value)
    if name == "arccot":
        return mp.pi / 2 - mp.atan(value)
    if name in ("ln", "log"):
        if value == 0:
            raise Undefined("the logarithm of zero")
        base = values[1] if len(values) > 1 else log_base if name == "log" else 0
        return mp.log(value) / mp.log(base) if base else mp.log(value)
    if name == "binom":
        return mp.binomial(_bounded(values[0]), _bounded(values[1]))
    if name == "Gamma":
        return _gamma(mp, value)
    return _whole_numbers(mp, name, values)


def _quotient_of_angles(mp: Any, name: str, value: Any) -> Any:
    denominator = mp.cos(value) if name in ("tan", "sec") else mp.sin(value)
    if abs(denominator) < mp.mpf(10) ** (-DIGITS + 8):
        raise Undefined(f"{name} has no value here")
    numerator = {"tan": mp.sin, "cot": mp.cos}.get(name)
    return (numerator(value) if numerator else 1) / denominator


def _whole_numbers(mp: Any, name: str, values: list[Any]) -> Any:
    if any(mp.im(value) != 0 for value in values):
        if name == "re":
            return mp.re(values[0])
        if name == "im":
            return mp.im(values[0])
        raise Unworkable(name)
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if name in ("floor", "ceil"):
        return getattr(mp, name)(values[0])
    if name == "sgn":
        return mp.sign(values[0])
    raise Unworkable(name)


def _bounded_angle(mp: Any, value: Any) -> Any:
    """`value`, an angle. Raises Undefined if it is too large to be worked out."""
    if abs(value) > mp.mpf(10) ** 15:
        raise Undefined("an angle too large to be worked out")
    return value


def _bounded(value: Any) -> Any:
    """`value`. Raises Undefined if it is too large to be worked out."""
    if abs(value) > 100_000:
        raise Undefined("too large to be worked out")
    return value
