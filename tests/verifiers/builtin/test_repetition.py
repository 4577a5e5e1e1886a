"""Texts that repeat themselves, and loops that a response ends in."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.builtin.repetition import final_loop, repeated_share

PROSE = " ".join(random.Random(0).choices([f"word{i}" for i in range(500)], k=400))
CHINESE = "".join(random.Random(1).choices([chr(0x4E00 + i) for i in range(500)], k=400))


def said(answer: str, reasoning: str = "", role: str = "penalty", **params: Any) -> Verdict:
    verdict = load("repetition", params)({"role": role}, Response(text=answer, answer=answer, reasoning=reasoning))
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize("text", [PROSE, CHINESE, "4", "", "-" * 300, "no no no no no", "1 0 0 0 0 0 0 0"])
def test_ordinary_texts_are_not_punished(text: str) -> None:
    assert said(text, PROSE).score == 0.0


@pytest.mark.parametrize(
    "loop", ["Wait, let me check again. ", "等等，让我再检查一遍。", "ha", "a", "\\frac{1}{2} + ", "no\n", "-" * 500]
)
@pytest.mark.parametrize("cut", [0, 1])
def test_a_loop_at_the_end_is_punished_in_full(loop: str, cut: int) -> None:
    text = PROSE + loop * (300 if len(loop) < 100 else 5)
    assert said("4", text[: len(text) - cut]).score == -1.0
    assert said(text[: len(text) - cut]).score == -1.0
    assert said("4", text, most=0.3).score == -0.3
    assert said("4", text, role="gate").score == 0.0
    assert said("4", text, role="score").score == 0.0


def test_the_reason_names_the_part_and_the_loop() -> None:
    verdict = said("4", PROSE + "Wait, let me check again. " * 40)
    assert verdict.reason.startswith("the reasoning ends in a loop: ")
    assert verdict.metrics == {"reasoning": 1.0, "answer": 0.0}


@pytest.mark.parametrize("text", [PROSE, CHINESE])
def test_a_loop_that_is_left_again_counts_by_its_share(text: str) -> None:
    half = text[: len(text) // 4] * 4 + text[len(text) // 4 :]
    share = repeated_share(half, 20)
    assert 0.3 < share < 0.6
    assert said(half, allowed=0.2).score == pytest.approx(-(share - 0.2) / 0.8)
    assert said(half, allowed=0.8).score == 0.0


def test_the_share_is_one_less_distinct_runs_over_runs() -> None:
    assert repeated_share("a b c d a b c d", 2) == pytest.approx(1 - 4 / 7)
    assert repeated_share("a b c d a b c", 2) == 0.0  # fewer than 4 n units


def test_the_final_loop_and_how_often() -> None:
    loop, times = final_loop(PROSE + "abcdefghij" * 30)
    assert (sorted(loop), times) == (sorted("abcdefghij"), 30)
    assert final_loop(PROSE + "abcdefghij" * 19) == ("", 0)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=30), st.integers(5, 9))
def test_what_is_repeated_often_enough_is_always_found(loop: str, times: int) -> None:
    text = loop * times
    found, number = final_loop(text * 60)
    if any(char.isalnum() for char in loop) and len((text * 60).rstrip()) >= 220:
        assert found
        assert number >= 5
    assert len(found) <= len(loop)


@pytest.mark.parametrize("params", [{"n": 0}, {"allowed": 2}, {"most": -0.1}, {"n": 1.5}])
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        load("repetition", params)


def test_published_solutions_hardly_repeat_themselves(published: Path) -> None:
    rows = [json.loads(line) for line in (published / "math" / "math500.jsonl").read_text().splitlines()]
    penalties = [said(row["solution"]).score or 0.0 for row in rows]
    assert sum(penalty < 0 for penalty in penalties) <= 2
    assert min(penalties) > -0.15
