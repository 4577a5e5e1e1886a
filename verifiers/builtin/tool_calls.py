"""Function calls in the answer, written as `<tool_call>` blocks: the form that Hermes and Qwen models use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from qwq_rl.verifiers.builtin.json_text import NotJson, canonical, parse_one
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier
from qwq_rl.verifiers.verdicts import bad_reference, correct, empty_answer, shown, wrong

OPEN, CLOSE = "<tool_call>", "</tool_call>"
Call = dict[str, Any]


def tool_call() -> Verifier:
    """A verifier: the calls in the answer are those of the reference, `{"calls": [{"name", "arguments"}]}`.

    Names and arguments must match exactly. The order of calls does not matter, and text outside the blocks is allowed.
    If the reference has no calls, an answer passes if it has none.
    """
    return _verify


def calls_in(answer: str) -> list[Call]:
    """The calls written in `answer`; raises NotJson if a block is malformed or never closes."""
    calls: list[Call] = []
    start = answer.find(OPEN)
    while start >= 0:
        end = answer.find(CLOSE, start)
        if end < 0:
            raise NotJson(f"call {len(calls) + 1} has no {CLOSE}")
        try:
            value = parse_one(answer[start + len(OPEN) : end])
        except NotJson as error:
            raise NotJson(f"call {len(calls) + 1} is not JSON: {error}") from None
        mistake = _call_mistake(value)
        if mistake:
            raise NotJson(f"call {len(calls) + 1} {mistake}")
        calls.append(value)
        start = answer.find(OPEN, end)
    return calls


def _call_mistake(call: Any) -> str:
    """What is wrong with a call; empty if nothing is."""
    if not isinstance(call, Mapping) or set(call) != {"name", "arguments"}:
        return "must be an object with `name` and `arguments`"
    if not isinstance(call["name"], str) or not call["name"]:
        return "must have a string as `name`"
    return "" if isinstance(call["arguments"], Mapping) else "must have an object as `arguments`"


def _verify(problem: Problem, response: Response) -> Verdict:
    reference = problem.get("reference")
    expected = reference.get("calls") if isinstance(reference, Mapping) else None
    if not isinstance(expected, list | tuple):
        return bad_reference('the reference must be {"calls": [...]}')
    for number, call in enumerate(expected, 1):
        if _call_mistake(call):
            return bad_reference(f"call {number} of the reference {_call_mistake(call)}")
    answer = response.answer.strip()
    if not answer:
        return empty_answer(response)
    try:
        calls_made = calls_in(answer)
    except NotJson as error:
        return wrong(str(error), answer)
    # Counters, so that the order is free but every repeat counts.
    made_counts, expected_counts = Counter(map(canonical, calls_made)), Counter(map(canonical, expected))
    if made_counts == expected_counts:
        return correct(f"{len(calls_made)} of {len(expected)} calls made as asked", answer)
    return wrong(_difference(made_counts, expected_counts), answer)


def _difference(calls_made: Counter[str], calls_expected: Counter[str]) -> str:
    """One call that is missing, and one that was not asked for."""
    missing, extra = [*(calls_expected - calls_made)], [*(calls_made - calls_expected)]
    parts = [f"missing {shown(missing[0], 90)}"] if missing else []
    parts += [f"not asked for {shown(extra[0], 90)}"] if extra else []
    return "; ".join(parts)
