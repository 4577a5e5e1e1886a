"""Multiple choice: the one letter that an answer commits to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.verifiers import Response, Verdict, load

TEXTS = ["London", "Paris", "Rome"]


def said(answer: str, reference: Any = "B", **columns: Any) -> Verdict:
    verdict = load("choice")({"reference": reference, **columns}, Response(text=answer, answer=answer))
    assert isinstance(verdict, Verdict)
    return verdict


COMMITTED = [
    r"\boxed{B}",
    r"\boxed{\text{B}}",
    r"\boxed{(B)}",
    r"\boxed{\textbf{(B) }42}",
    r"\boxed{B. Paris}",
    r"$\boxed{B}$, since A and C are too small",
    "Answer: B",
    "Answer: b",
    "**Answer:** B",
    "Answer: **B**",
    "Answer\n\nB",
    "### Answer\n(B)",
    "the answer is (B)",
    "The final answer is B because it is so",
    "The answer to the question is B.",
    "The correct option is: B",
    "Final Answer — B",
    "Answer: B) Paris",
    "Option A is too small, and C too large.\nSo the answer is B.",
    "答案：B",
    "答案是B。",
    "A项错误，故选 B。",
    "正确选项是（B）",
    "本题选B",
    "答案选B",
    "<answer>B</answer>",
    "<answer>\nB. Paris\n</answer>",
    r"\boxed{\mathrm{B}}.",
    "Answer: (B), not (A)",
    "So the answer is option B.",
    "Ｂ",
    "B",
    "b",
    "(B)",
    "**B**",
    "B. Paris",
    "B\n\nA is too small.",
    "A is too small.\n\nB",
]
UNCOMMITTED = [
    "A or B",
    "(A) and (B)",
    "AB",
    "A\nB\nC",
    "Answer: A or B",
    "Answer: either B or C",
    "Answer: AB",
    "Answer: B/C",
    "Answer: A, B",
    "Answer: B. Answer: A",
    "答案：A或B",
    r"\boxed{A, B}",
    r"\boxed{B} \boxed{A}",
    r"Answer: A. \boxed{B}",
    r"\boxed{B} and then \boxed{",
    r"\boxed{B} and then \boxed{}",
    r"\boxed{the second one}",
    "The answer is a nice article",
    "I think A is a nice article about B",
    "Plan B",
    "不选择B",
    "不应该选B",
    "<answer>A</answer> <answer>B</answer>",
    "选项B错误",
    "The answer is not B",
    "The last of them is B, which I like",
    "",
]


@pytest.mark.parametrize("answer", COMMITTED)
def test_a_committed_letter_is_found(answer: str) -> None:
    verdict = said(answer)
    assert (verdict.score, verdict.answer) == (1.0, "B"), verdict.reason
    assert said(answer, "A").score == 0.0


@pytest.mark.parametrize("answer", UNCOMMITTED)
@pytest.mark.parametrize("reference", ["A", "B"])
def test_hedges_and_letters_in_prose_never_pass(answer: str, reference: str) -> None:
    verdict = said(answer, reference)
    assert verdict.score == 0.0
    assert verdict.reason


@pytest.mark.parametrize("answer", ["The answer is A nice article", "Answer: A long story", "Answer: I think so"])
def test_words_of_one_letter_are_no_choice(answer: str) -> None:
    assert said(answer, "A").status == said(answer, "I").status == "no_answer"


@pytest.mark.parametrize(
    "answer", ["Paris", r"\boxed{paris}", "B. Paris", "Answer: Paris.", "So it is\n\nParis", "So it is\n\nB. Paris"]
)
def test_the_text_of_the_option_stands_for_its_letter(answer: str) -> None:
    assert said(answer, choices=TEXTS).score == 1.0
    assert said(answer, choices=dict(zip("ABC", TEXTS, strict=True))).score == 1.0


@pytest.mark.parametrize("answer", ["London", "B. London", "Answer: B. Rome", "A. London\nB. Paris", "London or Paris"])
def test_another_option_s_text_does_not_pass(answer: str) -> None:
    assert said(answer, choices=TEXTS).score == 0.0


def test_options_of_the_same_text_are_one() -> None:
    assert said("Paris", choices=["Paris", "Paris", "Rome"]).score == 1.0


@pytest.mark.parametrize("reference", ["(b)", "B.", "Ｂ"])
def test_the_reference_may_be_decorated(reference: str) -> None:
    assert said("B", reference).score == 1.0


@pytest.mark.parametrize("reference", [None, 1, "", "K", "AB", ["B"]])
def test_a_reference_that_is_no_letter_is_the_row_s_fault(reference: Any) -> None:
    assert said("B", reference).status == "bad_reference"


@pytest.mark.parametrize("choices", [["one"], "AB", [], ["one", ""], {"X": "one"}])
def test_choices_without_the_reference_are_the_row_s_fault(choices: Any) -> None:
    assert said("B", choices=choices).status == "bad_reference"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="AB ab().:\n\\boxed{}*$answeri答案", max_size=60))
def test_no_answer_passes_for_two_letters(answer: str) -> None:
    assert said(answer, "A").score + said(answer, "B").score <= 1  # type: ignore[operator]


@pytest.mark.parametrize("hedge", ["A or B", "(A) or (B)", "Answer: A\nAnswer: B", "Maybe A.\n\nB\n\nA"])
@pytest.mark.parametrize("bomb", ["Answer: B\n" * 60, r"\boxed{B}" * 60, "B" * 100_001])
def test_what_announces_too_much_is_no_answer(hedge: str, bomb: str) -> None:
    assert said(f"{hedge}\n{bomb}").status == "no_answer"
