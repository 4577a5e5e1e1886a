"""Exact, modular and numeric identity, by closed forms and by properties."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.verifiers.mathematics.comparing.exact import PRIME, Undefined, rational, residue
from qwq_rl.verifiers.mathematics.comparing.identity import same_expression
from qwq_rl.verifiers.mathematics.comparing.numeric import context, evaluate
from qwq_rl.verifiers.mathematics.reading.cleaning import clean
from qwq_rl.verifiers.mathematics.reading.node import Node
from qwq_rl.verifiers.mathematics.reading.parser import parse


def read(text: str) -> Node:
    return parse(clean(text))


def same(one: str, other: str) -> bool | None:
    return same_expression(read(one), read(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(x+1)^2", "x^2+2x+1"), (r"\sin^2 x+\cos^2 x", "1"), (r"\cos 2x", r"1-2\sin^2 x"),
        (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}"),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"), (r"\ln 8", r"3\ln 2"), (r"\tan 75^\circ", r"2+\sqrt3"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"\frac{n!}{(n-2)!}", "n(n-1)"), ("2^{10^9}", "4^{5*10^8}"), (r"\arctan 1", r"\pi/4"), (r"i^2", "-1"),
        ("1.0", "1"),
        (r"\frac{x^2-1}{x-1}", "x+1"), (r"e^{\ln x}", "x"), ("0.3333333", r"\frac13"), (r"\log 100", "2"),
        (r"\sqrt[3]{-8}", "-2"),
    ],
)  # fmt: skip
def test_the_same(one: str, other: str) -> None:
    assert same(one, other) is True
    assert same(other, one) is True


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x^2", "x^3"), (r"\sqrt{x^2}", "x"), ("x+1", "y+1"), ("2^{10^9}", "2^{10^9}+1"), ("1/2^{98}", "1/2^{99}"),
        ("0.333", r"\frac13"),
        (r"\lfloor x \rfloor", "x"), (r"\sin x", "x"), ("1-1/e", "1+1/e"), (r"\sin 30", r"\sin 30^\circ"),
        ("0.50001", "0.5"),
        (r"e^{\pi\sqrt{163}}", "262537412640768744"), ("n!", "n"), ("(-1)^n", "1"), ("1/0", "1/0+1"),
    ],
)  # fmt: skip
def test_not_the_same(one: str, other: str) -> None:
    assert same(one, other) is False


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=4), st.integers(-5, 5))
def test_a_polynomial_equals_its_factors_and_not_its_neighbour(roots: list[int], off: int) -> None:
    factored = "".join(f"(x-({root}))" for root in roots)
    coefficients = [1]
    for root in roots:
        shifted = [*coefficients, 0]
        coefficients = [a - root * b for a, b in zip(shifted, [0, *coefficients], strict=True)]
    degree = len(roots)
    expanded = "+".join(f"({c})x^{{{degree - place}}}" for place, c in enumerate(coefficients[:-1]))
    assert same(factored, f"{expanded}+({coefficients[-1] + off})") is (off == 0)


@given(st.fractions(max_denominator=50), st.fractions(max_denominator=50))
def test_residues_add_and_multiply(one: Fraction, other: Fraction) -> None:
    left, right = Node("num", (), one), Node("num", (), other)
    for kind, expected in (("add", one + other), ("mul", one * other)):
        found = residue(Node(kind, (left, right)), {})
        assert found == expected.numerator * pow(expected.denominator, -1, PRIME) % PRIME


def test_division_by_zero_has_no_value() -> None:
    with pytest.raises(Undefined):
        rational(read("1/(2-2)"))


def test_what_is_too_large_is_not_written_out() -> None:
    assert rational(read("9^{9^{9}}")) is None


def test_a_value_has_fifty_right_digits() -> None:
    found = evaluate(read(r"\frac{1+\sqrt5}{2}"), {})
    assert context().nstr(found, 50) == "1.6180339887498948482045868343656381177203091798058"
