"""The contract of every built-in verifier: a passing response passes, empty and garbage do not, repeats agree."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from qwq_rl.verifiers import BUILT_IN, Response, Verdict, Verifier, load
from qwq_rl.verifiers.runner.judge import Role, judge

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
    "set_match": (["red", "blue"], "blue, red"),
    "list_match": (["red", "blue"], "red, blue"),
    "choice": ("B", r"so \boxed{B}"),
    "think_format": (None, "4"),
    "language_consistency": ("en", "The sum of the two numbers is four, as was to be shown here."),
    "repetition": (None, "4"),
    "overlong": (None, "4"),
}
PARAMS: Mapping[str, Mapping[str, Any]] = {"overlong": {"max_tokens": 100, "buffer": 20}}
RULES = ("think_format", "language_consistency", "repetition", "overlong")
"""What judges the form of a response, whatever it answers, in any role."""
ROLES: list[tuple[str, Role]] = [
    (name, role) for name in PASSING for role in ("score", "gate", "penalty") if role != "penalty" or name in RULES
]
GARBAGE = ("%% {{ \\frac ]] <tool_call> \x00 ☃", "{" * 3000, "\\boxed{" * 500, "9" * 10_000)
OFFENCES = {
    "think_format": Response(text="no end 4", answer="4"),
    "language_consistency": Response(text="", answer="这两个数的和是四，证明到此结束。", reasoning=""),
    "repetition": Response(text="", answer="4", reasoning="Wait, let me check again. " * 50),
    "overlong": Response(text="", answer="4", token_ids=range(100)),
}
HOSTILE = (
    " ",
    "a",
    "中",
    "A or ",
    "Answer: B\n",
    "\\boxed{B}",
    "$a ",
    "` ",
    "{",
    '["',
    "<think>",
    "</think>",
    "1,",
    "\\",
)


def respond(answer: str) -> Response:
    return Response(text=f"hm\n</think>\n{answer}", answer=answer, reasoning="hm", token_ids=range(5))


@cache
def loaded(name: str) -> Verifier:
    """Kept, since the processes of a verifier end with the last one that holds it."""
    return load(name, PARAMS.get(name))


def verdict(name: str, response: Response, role: Role = "score") -> Verdict:
    reference, _ = PASSING[name]
    problem = {"id": "r", "prompt": "p", "reference": reference}
    return judge(loaded(name), [(problem, response)], role)[0]


def test_every_built_in_verifier_is_held_to_the_contract() -> None:
    assert set(PASSING) == set(BUILT_IN)


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_a_passing_response_passes(name: str, role: Role) -> None:
    said = verdict(name, respond(PASSING[name][1]), role)
    assert (said.score, said.status) == (0.0 if role == "penalty" else 1.0, "correct"), said.reason


@pytest.mark.parametrize(("name", "role"), [pair for pair in ROLES if pair[1] != "penalty"])
def test_an_empty_answer_does_not_pass(name: str, role: Role) -> None:
    said = verdict(name, Response(text="thinking without an end", answer="", finish="length"), role)
    assert said.score == (None if name == "overlong" else 0.0)  # without token ids nobody knows its length
    assert said.reason


@pytest.mark.parametrize("name", [name for name in PASSING if name not in RULES])
@pytest.mark.parametrize("garbage", GARBAGE, ids=["symbols", "braces", "boxes", "digits"])
def test_garbage_is_judged_as_wrong_and_in_time(name: str, garbage: str) -> None:
    started = time.monotonic()
    said = verdict(name, Response(text=f"</think>{garbage}", answer=garbage, reasoning="hm"))
    assert said.score == 0.0, said.reason
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", RULES)
def test_what_breaks_a_rule_fails_in_every_role(name: str) -> None:
    said = {role: verdict(name, OFFENCES[name], role) for role in ("score", "gate", "penalty")}
    assert {role: one.score for role, one in said.items()} == {"score": 0.0, "gate": 0.0, "penalty": -1.0}
    assert all(one.status == "wrong" and one.reason for one in said.values())


@pytest.mark.parametrize("name", [name for name in PASSING if name not in ("math", "code")])
def test_hostile_texts_are_judged_in_time(name: str) -> None:
    for unit in HOSTILE:
        text = unit * (200_000 // len(unit))
        started = time.process_time()
        said = verdict(name, Response(text=text, answer=text, reasoning=text, token_ids=range(5)))
        assert time.process_time() - started < 5, unit
        assert said.score is not None, said.reason


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("answer", ["", GARBAGE[0], None])
def test_judging_again_says_the_same(name: str, answer: str | None) -> None:
    response = respond(PASSING[name][1] if answer is None else answer)
    first, second = verdict(name, response), verdict(name, response)
    assert (first.score, first.status, first.reason) == (second.score, second.status, second.reason)


@pytest.mark.parametrize("name", [name for name in PASSING if name not in RULES])
def test_a_reference_that_is_none_is_not_the_response_s_fault(name: str) -> None:
    said = judge(loaded(name), [({"id": "r", "prompt": "p", "reference": None}, respond(PASSING[name][1]))])[0]
    assert (said.score, said.status) == (None, "bad_reference")


def test_verifiers_import_no_torch_and_no_other_part() -> None:
    script = (
        "import sys; from qwq_rl.verifiers import BUILT_IN, load\n"
        f"params = {PARAMS!r}\n"
        "for name in BUILT_IN: load(name, params.get(name))\n"
        "parts = {m.split('.')[1] for m in sys.modules if m.startswith('qwq_rl.')}\n"
        "assert parts <= {'verifiers', 'sandbox', 'errors'}, parts\n"
        "assert not {'torch', 'transformers', 'sympy', 'math_verify'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
