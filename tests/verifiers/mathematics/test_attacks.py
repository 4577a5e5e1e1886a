"""Answers made to be taken for the gold answer: by hedges, by what hides or takes back, by commas, units and names."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import pytest

from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.mathematics.comparing.checker import equal
from qwq_rl.verifiers.mathematics.comparing.comparison import Rules

ATTACKS: dict[str, list[str]] = defaultdict(list)
for line in (Path(__file__).parent / "attacks.tsv").read_text().splitlines():
    ATTACKS[line.split("\t")[0]].append(line.split("\t")[1])


def score(gold: str, text: str) -> float | None:
    verdict = load("math", {"deadline_s": 10.0})({"reference": gold}, Response(text=text, answer=text))
    assert isinstance(verdict, Verdict)
    return verdict.score


@pytest.mark.parametrize("gold", ATTACKS)
def test_no_attack_is_taken_for_the_gold_answer(gold: str) -> None:
    assert score(gold, rf"\boxed{{{gold}}}") == 1.0
    assert [answer for answer in ATTACKS[gold] if score(gold, rf"\boxed{{{answer}}}") != 0.0] == []


@pytest.mark.parametrize("dress", ["{}", "({})", r"\text{{{}}}", r"\text{{({})}}", r"\textbf{{({})}}"])
@pytest.mark.parametrize(
    "between", [" or ", ", or ", " / ", "/", " and ", " maybe ", "\n\nor\n\n", ", ", " ", " or perhaps "]
)
def test_two_choices_are_no_choice(dress: str, between: str) -> None:
    right, other = dress.format("C"), dress.format("A")
    texts = [
        rf"\boxed{{{right}}}{between}\boxed{{{other}}}",
        rf"$\boxed{{{right}}}${between}$\boxed{{{other}}}$",
        rf"\boxed{{{right}}}{between}{other}",
        rf"$\boxed{{{right}}}${between}${other}$",
        rf"\boxed{{{right}{between}{other}}}",
        rf"\boxed{{{other}}}{between}{right}",
        rf"The answer is {right}{between}{other}",
    ]
    assert [text for text in texts if score("C", text) != 0.0] == []


@pytest.mark.parametrize(
    "piece", [r"\sqrt{#},", "x^#,", "(#,1),", r"\{#\},", r"x>#,", "x<", "ab ", "5 where x ", r"\sin #+", "#.5,"]
)
def test_long_answers_are_decided_in_milliseconds(piece: str) -> None:
    answer = "".join(piece.replace("#", str(place)) for place in range(400))[:2990]
    started = time.process_time()
    assert equal(answer, r"\sqrt{2}", Rules()) is not True
    assert time.process_time() - started < 0.4


@pytest.mark.parametrize(("text", "score_of_minus_five"), [(r"$x = -\boxed{5}$", 1.0), (r"$7 - \boxed{5}$", 0.0)])
def test_a_sign_before_the_box_belongs_to_the_answer(text: str, score_of_minus_five: float) -> None:
    assert score("-5", text) == score_of_minus_five
    assert score("5", text) == 1.0 - score_of_minus_five
