"""DAPO's soft punishment of long responses."""

from __future__ import annotations

from typing import Any

import pytest

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.runner.judge import judge


def said(tokens: int, role: Any = "penalty", **params: Any) -> Verdict:
    verifier = load("overlong", {"max_tokens": 100, "buffer": 20, **params})
    return judge(verifier, [({}, Response(text="", answer="", token_ids=range(tokens)))], role)[0]


@pytest.mark.parametrize(
    ("tokens", "score"), [(1, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (500, -1)]
)
def test_the_penalty_is_linear_within_the_buffer(tokens: int, score: float) -> None:
    assert said(tokens).score == pytest.approx(score)
    assert said(tokens, most=0.2).score == pytest.approx(0.2 * score)
    assert said(tokens, "score").score == pytest.approx(1 + score)
    assert said(tokens, "gate").score == float(score == 0)


def test_without_token_ids_it_is_a_fault_that_says_so() -> None:
    verdict = said(0)
    assert (verdict.score, verdict.status) == (None, "fault")
    assert "no token ids" in verdict.reason


@pytest.mark.parametrize("params", [{"buffer": 0}, {"buffer": 101}, {"max_tokens": 1.5}, {"most": 2}])
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        load("overlong", {"max_tokens": 100, "buffer": 20, **params})


def test_its_limits_must_be_named() -> None:
    with pytest.raises(UserError, match="max_tokens"):
        load("overlong")
