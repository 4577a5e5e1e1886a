"""The contract of every built-in verifier: a passing response passes, empty and garbage do not, repeats agree."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from qwq_rl.verifiers import BUILT_IN, Response, Verdict, load
from qwq_rl.verifiers.running import judge

CALL = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
PASSING: dict[str, tuple[Any, str]] = {
    "math": ("4", r"so \boxed{4}"),
    "code": (
        {"tests": [{"input": "2 3\n", "output": "5\n"}], "entry_point": None},
        "```python\na, b = map(int, input().split())\nprint(a + b)\n```",
    ),
    "json_schema": ({"type": "object", "required": ["age"]}, '{"age": 3}'),
    "tool_call": (
        {"calls": [CALL]},
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>',
    ),
    "constraints": ({"all": [{"kind": "upper"}, {"kind": "words", "count": 2}]}, "RED CAT"),
    "exact": ("red cat", " red  cat\n"),
    "think_format": (None, "4"),
}
GARBAGE = ("%% {{ \\frac ]] <tool_call> \x00 ☃", "{" * 3000, "\\boxed{" * 500, "9" * 10_000)


def respond(answer: str, thought: str = "hm\n</think>\n") -> Response:
    return Response(text=thought + answer, answer=answer, reasoning="hm")


def verdict(name: str, response: Response) -> Verdict:
    reference, _ = PASSING[name]
    return judge(load(name), [({"id": "r", "prompt": "p", "reference": reference}, response)])[0]


def test_every_built_in_verifier_is_held_to_the_contract() -> None:
    assert set(PASSING) == set(BUILT_IN)


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_response_passes(name: str) -> None:
    said = verdict(name, respond(PASSING[name][1]))
    assert (said.score, said.status) == (1.0, "correct"), said.reason


@pytest.mark.parametrize("name", PASSING)
def test_an_empty_answer_does_not_pass(name: str) -> None:
    said = verdict(name, Response(text="thinking without an end", answer="", finish="length"))
    assert said.score == 0.0
    assert said.reason


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("garbage", GARBAGE, ids=["symbols", "braces", "boxes", "digits"])
def test_garbage_is_judged_as_wrong_and_in_time(name: str, garbage: str) -> None:
    started = time.monotonic()
    said = verdict(name, respond(garbage, thought="</think>" if name != "think_format" else "no end "))
    assert said.score == 0.0, said.reason
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("answer", ["", GARBAGE[0], None])
def test_judging_again_says_the_same(name: str, answer: str | None) -> None:
    response = respond(PASSING[name][1] if answer is None else answer)
    first, second = verdict(name, response), verdict(name, response)
    assert (first.score, first.status, first.reason) == (second.score, second.status, second.reason)


@pytest.mark.parametrize("name", [name for name in PASSING if name != "think_format"])
def test_a_reference_that_is_none_is_not_the_response_s_fault(name: str) -> None:
    said = judge(load(name), [({"id": "r", "prompt": "p", "reference": None}, respond(PASSING[name][1]))])[0]
    assert (said.score, said.status) == (None, "bad_reference")


def test_verifiers_import_no_torch_and_no_other_part() -> None:
    script = (
        "import sys; from qwq_rl.verifiers import BUILT_IN, load\n"
        "for name in BUILT_IN: load(name)\n"
        "parts = {m.split('.')[1] for m in sys.modules if m.startswith('qwq_rl.')}\n"
        "assert parts <= {'verifiers', 'sandbox', 'errors'}, parts\n"
        "assert not {'torch', 'transformers', 'sympy', 'math_verify'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
