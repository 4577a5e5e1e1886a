"""Equal to a reference, and a well-formed thinking block."""

from __future__ import annotations

from typing import Any

import pytest

from qwq_rl.verifiers import Response, Verdict, load


def said(name: str, text: str, answer: str, reference: Any = None) -> Verdict:
    verdict = load(name)({"reference": reference}, Response(text=text, answer=answer))
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [("red cat", "red  cat\n", 1.0), ("caf\u0065\u0301", "caf\u00e9", 1.0), ("7", 7, 1.0), ("Red cat", "red cat", 0.0)],
)
def test_exact_ignores_white_space_and_composition_only(answer: str, reference: Any, score: float) -> None:
    assert said("exact", answer, answer, reference).score == score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("hm\n</think>\n4", "4", 1.0),
        ("<think>\nhm\n</think>\n4", "4", 1.0),
        ("hm 4", "", 0.0),
        ("4", "4", 0.0),
        ("hm </think> hm </think> 4", "4", 0.0),
        ("<think> <think> </think> 4", "4", 0.0),
        ("</think> <think> 4", "4", 0.0),
        ("hm </think> ", "", 0.0),
    ],
)
def test_thinking_closes_once_and_an_answer_follows(text: str, answer: str, score: float) -> None:
    verdict = said("think_format", text, answer)
    assert verdict.score == score
    assert verdict.reason
