"""Which answers are equal: tables by hand, properties, and more than a thousand labelled cases."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.data.chat import split_thinking
from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.mathematics.comparing.checker import equal
from qwq_rl.verifiers.mathematics.comparing.comparison import Rules

CASES = [json.loads(line) for line in (Path(__file__).parent / "labelled_cases.jsonl").read_text().splitlines()]


def decide(answer: str, gold: str, rules: Rules | None = None) -> bool | None:
    return equal(answer, gold, rules or Rules())


EQUAL = [
    ("0.5", "1/2"), (r"\frac12", "0.5"), (r"\dfrac{1}{2}", "1/2"), ("2/4", "1/2"), ("1,234", "1234"),
    ("1{,}234", "1234"), (r"1\,234", "1234"), ("007", "7"), ("4.0", "4"), ("-3", "−3"), (r"-\frac{3}{6}", "-0.5"),
    (r"3\frac{1}{2}", "3.5"), ("50%", "0.5"), (r"50\%", "50%"), ("50%", "50"), ("$5", "5"), (r"\$18.00", "18"),
    ("$18$", "18"), ("5 dollars", r"\$5"), (r"5\text{ cm}", "5"), ("5 cm", r"5\text{ centimeters}"),
    (r"5\text{ cm}^2", "5"), (r"90^\circ", "90"), ("x=5", "5"), ("5", "x = 5"), ("2, 1", "1,2"), ("2,1", r"\{1, 2\}"),
    ("2 and 1", "1, 2"), ("x=2 or x=1", "1,2"), ("(1,2)", "(1, 2)"), ("(1, 0.5)", r"\left(1, \frac{1}{2}\right)"),
    ("1.2e3", "1200"), (r"1.2 \times 10^3", "1200"), ("2^{10}", "1024"), ("0.333333", r"\frac{1}{3}"),
    (r"\text{Yes}", "yes"), ("(B)", "B"), (r"\textbf{(B)}", "B"), ("4.", "4"), ("3*(1+1)", "6"), ("x^2 + 1", "x^2+1"),
    ("no  solution", "No solution"), (r"x \in [1,2]", "[1, 2]"), ("2^{3^{2}}", "512"),
    (r"\sqrt{16}", "4"), (r"2\sqrt{3}", r"\sqrt{12}"), ("4^{1/2}", "2"), ("x^2-1", "(x-1)(x+1)"), ("xy", "yx"),
    ("1,2", "(1,2)"), ("seven", "7"), (r"5\text{ m}", "500 cm"), (r"\log_2 8", "3"),
    (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}"),
    (r"e^{i\pi}", "-1"), (r"0.\overline{3}", "1/3"), ("2 million", "2000000"), ("½", "0.5"), ("x²", "x^2"),
    ("x>2", r"(2,\infty)"), (r"(-\infty,1)\cup(3,\infty)", "x<1 or x>3"), (r"|x|<2", "(-2,2)"),
    (r"x \ne 2", r"(-\infty,2)\cup(2,\infty)"),
    (r"\text{no solution}", r"\emptyset"), (r"\text{all real numbers}", r"\mathbb{R}"),
    (r"2\pm\sqrt3", r"2+\sqrt3, 2-\sqrt3"),
    ("[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"), ("A,C", "AC"), (r"\textbf{(B) }42", "42"),
    ("2或3", "2, 3"),
    ("y=2x+1", "2x-y+1=0"), ("3:4", "6:8"), (r"10 \pmod{7}", r"3 \pmod{7}"),
    (r"k\pi, k\in\mathbb{Z}", r"n\pi, n\in\mathbb{Z}"),
    (r"\frac{1}{2}\begin{pmatrix}2\\4\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("2^{100000000}", r"4^{50000000}"),
]  # fmt: skip
DIFFERENT = [
    ("5", "4"), ("0.33", "1/3"), ("0.3333", "0.333333"), ("28", "0.28"), ("2^{-98}", "2^{-99}"),
    ("1.345e-27", "1.325e-27"), (r"5\text{ m}", "5 cm"), ("[1,2]", "(1,2)"), ("(2,1)", "(1,2)"), ("1,2", "1"),
    ("4, 5", "4"), ("1,2", "1,3"), ("1,2,3", "1,2"), ("3 +", "7"), ("((7", "7"), ("1 2", "12"),
    ("", "7"), ("silent", "listen"), ("C", "B"), ("7", "B"), ("no", "yes"), ("1,23", "123"), ("1.2.3", "1.23"),
    (r"5\text{ m}", "50 cm"), ("xz", "xy"), ("-7", "7"), ("28%", "0.26"), ("9^{9^{9^9}}", "7"),
    ("10^{9999999}", "7"), ("1/0", "7"), ("0^{-1}", "7"), ("x", "7"), ("4=", "4"), ("[4", "4"), ("= 4 +", "4"),
    (r"\pi", "3.14"), ("y=5", "x=5"), (r"\pm 2", "2"), ("p - q", "q - p"), ("5 million", "5"), ("5x", "5"),
    ("2^{100000000}", "2^{100000000}+1"), ("1/2^{98}", "1/2^{99}"), (r"204_7", "204_5"),
    (r"e^{\pi\sqrt{163}}", "262537412640768744"),
    ("x<5", "x>5"), ("[1,2)", "(1,2)"), (r"\sqrt{x^2}", "x"), ("x+y=3", "x+y=4"), ("3:4", "4:3"),
    (r"\ln 2", r"\log_2 10"),
    (r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"), (r"A \text{ or } C", "A"),
    ("at least 5", "5"),
    ("not 5", "5"), (r"\{\emptyset\}", r"\emptyset"), ("1 < x \\le 3", "1 < x < 3"), ("2x + C", "x^2 + C"),
    (r"7+\sqrt{-1}", "7"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_both_ways(answer: str, gold: str) -> None:
    assert decide(answer, gold) is True
    assert decide(gold, answer) is True


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer: str, gold: str) -> None:
    assert decide(answer, gold) is False


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_labelled_cases_are_judged_as_a_careful_grader_would(kind: str) -> None:
    verifier = load("math", {"deadline_s": 10.0})  # however busy the machine
    wrong = []
    for case in CASES:
        if case["kind"] == kind:
            _, answer = split_thinking(case["response"], opened=False)
            verdict = verifier({"reference": case["reference"]}, Response(text=case["response"], answer=answer.strip()))
            assert isinstance(verdict, Verdict)
            if verdict.score != case["expected"]:
                wrong.append((case["reference"], case["response"], verdict.score, verdict.reason))
    assert wrong == []


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: str(case["id"]))
def test_a_gold_may_be_bare_or_in_dollars_or_boxed(case: dict[str, str]) -> None:
    verifier = load("math", {"deadline_s": 10.0})  # however busy the machine
    bare = (
        case["reference"].removeprefix("\\boxed{").removesuffix("}")
        if "boxed" in case["reference"]
        else case["reference"]
    )
    bare = bare.strip("$")
    _, answer = split_thinking(case["response"], opened=False)
    response = Response(text=case["response"], answer=answer.strip())
    styles = [bare, f"${bare}$", f"\\boxed{{{bare}}}"]
    scores = {style: verifier({"reference": style}, response).score for style in styles}  # type: ignore[union-attr]
    assert len(set(scores.values())) == 1, scores


@pytest.mark.parametrize(
    ("answer", "gold", "strict"),
    [("50%", "0.5", True), ("50%", "50", False), ("50", "50%", False), ("0.5", "50%", True)],
)
def test_a_strict_percent_is_its_share_alone(answer: str, gold: str, strict: bool) -> None:
    assert decide(answer, gold) is True
    assert decide(answer, gold, Rules(percent="strict")) is strict


def test_the_tolerance_is_for_decimals_of_what_no_decimal_writes() -> None:
    assert decide("1.41421", r"\sqrt{2}") is False
    assert decide("1.41421", r"\sqrt{2}", Rules(tolerance=1e-5)) is True
    assert decide("0.49999", "0.5", Rules(tolerance=1e-2)) is False


@pytest.mark.parametrize(
    "bomb",
    ["9" * 10_000, "9^{9^{9^{9^9}}}", "(" * 5000, "-" * 5000, "1e999", "2**" * 90 + "2", "1,1," * 70, r"\frac" * 50],
)
def test_bombs_cost_milliseconds(bomb: str) -> None:
    started = time.process_time()
    assert decide(bomb, "7") is not True
    assert time.process_time() - started < 0.2


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**15))
def test_a_fraction_equals_itself_however_written(over: int, under: int) -> None:
    value = Fraction(over, under)
    assert decide(f"\\frac{{{over}}}{{{under}}}", f"{value.numerator}/{value.denominator}") is True


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_equal_only_to_themselves(left: int, right: int) -> None:
    assert decide(f"{left:,}", str(right)) is (left == right)


@given(st.text(alphabet="0123456789.,+-*/^(){}[] \\\\fracx=%$andor<>|_!:", max_size=40))
def test_any_text_is_decided_or_left_open(text: str) -> None:
    assert decide(text, "7") in (True, False, None)
    assert decide("7", text) in (True, False, None)
    assert decide(text, text) is True


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=6), st.randoms())
def test_the_order_of_a_set_does_not_count_and_that_of_a_tuple_does(items: list[int], random: object) -> None:
    other = list(items)
    random.shuffle(other)  # type: ignore[attr-defined]
    assert decide(r"\{" + ",".join(map(str, items)) + r"\}", r"\{" + ", ".join(map(str, other)) + r"\}") is True
    if len(items) > 1:
        left, right = (f"({', '.join(map(str, side))})" for side in (items, other))
        assert decide(left, right) is (items == other)
