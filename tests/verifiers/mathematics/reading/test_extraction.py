"""What a math response commits to: the last box group, a `####` line or an answer phrase; never the last number."""

from __future__ import annotations

import time

import pytest

from qwq_rl.verifiers.mathematics.reading.extraction import extract


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{ 4 }", "4"),
        (r"\boxed {4}", "4"),
        (r"\fbox{4}", "4"),
        (r"first \boxed{3}, no: it is rather \boxed{4} in the end", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"$\boxed{2}$ and $\boxed{3}$", "2, 3"),
        (r"\boxed{4}, \boxed{4}", "4"),
        (r"x is \boxed{2}, while the other number y is given by 7-2 = \boxed{5}", "5"),
        ("6 * 12 = 72\n#### 72", "72"),
        ("The final answer is 72. I hope it is correct.", "72"),
        ("The answer is: 3.5", "3.5"),
        ("**Final Answer:** $x^2$", "$x^2$"),
        ("**Answer**: 7", "7"),
        ("答案：42", "42"),
        (r"\boxed{4} was too quick. The final answer is 5.", "5"),
        (r"The final answer is $\boxed{4}$. I hope it is correct.", "4"),
    ],
)
def test_the_answer_is_found(text: str, answer: str) -> None:
    assert extract(text).answer == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("it is 72", "there is no"),
        ("", "there is no"),
        (r"\boxed{4} \boxed{}", "empty"),
        (r"\boxed{4} then \boxed{5", "cut off"),
        (r"\boxed{4} then \boxed", "cut off"),
        (r"\boxed{\frac{1}{2}", "cut off"),
    ],
)
def test_no_answer_says_why(text: str, reason: str) -> None:
    found = extract(text)
    assert found.answer is None
    assert reason in found.reason


@pytest.mark.parametrize("piece", [r"\boxed{", r"\boxed{1}", "the final answer is ", "\\", "{", r"\boxed ", " "])
def test_long_texts_take_linear_time(piece: str) -> None:
    started = time.process_time()
    extract(piece * 50_000)
    assert time.process_time() - started < 2
