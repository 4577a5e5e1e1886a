"""Function calls in the answer: names and arguments exactly, in any order, text outside allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwq_rl.verifiers import Response, Verdict, load

ROME = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
OSLO = {"name": "hotel", "arguments": {"city": "Oslo", "nights": 1}}


def block(call: Any) -> str:
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def said(answer: str, calls: Any) -> Verdict:
    verdict = load("tool_call")({"reference": {"calls": calls}}, Response(text=answer, answer=answer))
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        (block(ROME), [ROME]),
        (f"let me look\n{block(ROME)}\nthere", [ROME]),
        (block(OSLO) + block(ROME), [ROME, OSLO]),
        (block({"arguments": {"days": 2.0, "city": "Rome"}, "name": "weather"}), [ROME]),
        (block(ROME) * 2, [ROME, ROME]),
        ("no function fits", []),
    ],
)
def test_the_calls_that_were_asked_pass(answer: str, calls: Any) -> None:
    assert said(answer, calls).score == 1.0


@pytest.mark.parametrize(
    ("answer", "calls", "reason"),
    [
        ("it is sunny", [ROME], 'missing {"arguments": {"city": "Rome", "days": 2}, "name": "weather"}'),
        (block(ROME) * 2, [ROME], "not asked for"),
        (block(ROME), [], "not asked for"),
        (block({**ROME, "arguments": {"city": "Rome", "days": 3}}), [ROME], "missing"),
        (block({**ROME, "arguments": {"city": "Rome", "days": True}}), [{**ROME, "arguments": {"days": 1}}], "missing"),
        (block({**ROME, "arguments": {"city": "Rome", "days": 2, "unit": "C"}}), [ROME], "not asked for"),
        ("<tool_call>\n" + json.dumps(ROME), [ROME], "call 1 has no </tool_call>"),
        ("<tool_call>{weather}</tool_call>", [ROME], "call 1 is not JSON"),
        (block(ROME) + block([1]), [ROME], "call 2 must be an object with `name` and `arguments`"),
        (block({**ROME, "arguments": '{"city": "Rome"}'}), [ROME], "must have an object as `arguments`"),
        (json.dumps(ROME), [ROME], "missing"),
    ],
)
def test_anything_else_is_wrong_and_says_why(answer: str, calls: Any, reason: str) -> None:
    verdict = said(answer, calls)
    assert (verdict.score, verdict.status) == (0.0, "wrong")
    assert reason in verdict.reason


def test_true_is_not_one() -> None:
    asked = {"name": "alarm", "arguments": {"hour": 1}}
    assert said(block({"name": "alarm", "arguments": {"hour": True}}), [asked]).score == 0.0


@pytest.mark.parametrize("calls", [None, "x", [1], [{"name": "a"}], [{"name": "a", "arguments": []}]])
def test_a_bad_reference_is_told(calls: Any) -> None:
    assert said(block(ROME), calls).status == "bad_reference"
