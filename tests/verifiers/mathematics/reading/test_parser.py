"""What an answer is read as: precedence, products without a sign, mixed numbers, units, brackets; what is refused."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.verifiers.mathematics.comparing.exact import rational
from qwq_rl.verifiers.mathematics.reading.cleaning import clean
from qwq_rl.verifiers.mathematics.reading.node import Node
from qwq_rl.verifiers.mathematics.reading.parser import parse
from qwq_rl.verifiers.mathematics.reading.tokens import Unreadable


def value(text: str) -> Fraction | None:
    return rational(parse(clean(text)))


def kind(text: str) -> str:
    return parse(clean(text)).kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3*4", 14), ("-2^2", -4), ("2^{3^2}", 512), ("2^3^2", 512), ("10-3-2", 5), ("12/2/3", 2), ("2(3+4)", 14),
        ("(2)(3)", 6),
        (r"\frac12", Fraction(1, 2)), (r"\frac{1}2", Fraction(1, 2)), (r"3\frac{1}{2}", Fraction(7, 2)),
        (r"-3\frac12", Fraction(-7, 2)),
        ("3 1/2", Fraction(7, 2)), (r"2\frac{5}{3}", Fraction(10, 3)), ("1,234.5", Fraction(2469, 2)),
        ("1.5e3", 1500), ("5!", 120),
        (r"\binom{5}{2}", 10), (r"{5 \choose 2}", 10), ("C_5^2", 10), (r"\sqrt{16}", 4), (r"\sqrt[3]{-27}", -3),
        ("√9", 3), (r"|{-4}|", 4),
        (r"\lfloor 2.7 \rfloor", 2), (r"\log_2 8", 3), (r"\log_{10}{100}", 2), (r"\gcd(12, 18)", 6),
        (r"7 \bmod 4", 3), ("1010_2", 10),
        (r"0.\overline{3}", Fraction(1, 3)), (r"0.1\dot{6}", Fraction(1, 6)), ("0.333...", Fraction(1, 3)),
        ("½", Fraction(1, 2)),
        ("2³", 8), (r"2 \cdot 10^{3}", 2000), ("２５", 25), ("2 million", 2_000_000), ("1.5亿", 150_000_000),
        (r"4^{1/2}", 2), ("--3", 3),
    ],
)  # fmt: skip
def test_arithmetic_has_its_value(text: str, expected: Fraction) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=5", "rel"), ("1<x<3", "rel"), (r"x \in [1,2]", "in"), ("(1,2)", "tuple"), ("[1,2)", "tuple"),
        (r"\{1,2\}", "set"),
        (r"\{x \mid x>2\}", "such"), (r"(1,2)\cup(3,4)", "union"), ("1, 2", "list"), ("2 or 3", "list"),
        ("2或3", "list"),
        (r"2\pm 1", "pm"), ("3:4", "ratio"), (r"3 \pmod 7", "mod"), ("5 cm", "quantity"),
        (r"5\text{ km/h}", "quantity"),
        (r"\$5", "quantity"), ("50%", "percent"), (r"30^\circ", "degree"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "matrix"),
        (r"\begin{cases}x&x>0\\-x&x\le0\end{cases}", "cases"), (r"\begin{cases}x=1\\y=2\end{cases}", "list"),
        ("5 apples", "quantity"),
        ("xy", "mul"), ("sin x", "call"), ("5x", "mul"), ("5 m", "quantity"), ("5m", "mul"), (r"\emptyset", "set"),
        ("2 hours 30 minutes", "quantity"),
    ],
)  # fmt: skip
def test_a_text_is_of_its_kind(text: str, expected: str) -> None:
    assert kind(text) == expected


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (r"\sin 2x", r"\sin(2x)"), (r"\sin^2 x", r"(\sin x)^2"), (r"\sin x \cos x", r"(\sin x)(\cos x)"),
        (r"\ln 2x", r"\ln(2x)"),
        ("2pi r", r"2\pi r"), ("sqrt(2)", r"\sqrt{2}"), (r"\dfrac{a}{b}", "a/b"), (r"\left( x \right)", "x"),
        ("x**2", "x^2"),
        (r"\sin^{-1} x", r"\arcsin x"), (r"\log_28", r"\log_2 8"), (r"a_{1}", "a_1"), (r"e^{i\pi}", r"\exp(i\pi)"),
    ],
)  # fmt: skip
def test_different_notations_are_one_tree(text: str, same: str) -> None:
    assert parse(clean(text)) == parse(clean(same))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "3+",
        "(1",
        "1)",
        "[1",
        "{1,2",
        "at least 5",
        "not 5",
        "5 if x",
        r"\unknown",
        r"\frac{1}",
        "1 2",
        "((((",
        "x^",
        "=",
        "2 3",
    ],
)
def test_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(clean(text))


@given(st.integers(-999, 999), st.integers(-999, 999), st.sampled_from("+-*"))
def test_sums_and_products_of_integers(left: int, right: int, sign: str) -> None:
    expected = {"+": left + right, "-": left - right, "*": left * right}[sign]
    assert value(f"({left}) {sign} ({right})") == expected


@given(st.text(alphabet="0123456789xyz+-*/^_(){}[]|,;:=<>!.%$& \\abcdefghijklmnopqrstuvw∞√½", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Unreadable, RecursionError):
        assert isinstance(parse(clean(text)), Node)
