"""Function calls written into the answer as `<tool_call>` blocks, the form that Hermes and Qwen models use."""

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

    Names and arguments match exactly, the order of calls is free, text outside the blocks is allowed. With no calls in
    the reference, an answer without any passes.
    """
    return _verify


def calls_in(answer: str) -> list[Call]:
    """The calls written in `answer`; raises NotJson where a block is malformed or never closes."""
    calls: list[Call] = []
    at = answer.find(OPEN)
    while at >= 0:
        end = answer.find(CLOSE, at)
        if end < 0:
            raise NotJson(f"call {len(calls) + 1} has no {CLOSE}")
        try:
            value = parse_one(answer[at + len(OPEN) : end])
        except NotJson as error:
            raise NotJson(f"call {len(calls) + 1} is not JSON: {error}") from None
        mistake = _mistake(value)
        if mistake:
            raise NotJson(f"call {len(calls) + 1} {mistake}")
        calls.append(value)
        at = answer.find(OPEN, end)
    return calls


def _mistake(call: Any) -> str:
    if not isinstance(call, Mapping) or set(call) != {"name", "arguments"}:
        return "must be an object with `name` and `arguments`"
    if not isinstance(call["name"], str) or not call["name"]:
        return "must have a string as `name`"
    return "" if isinstance(call["arguments"], Mapping) else "must have an object as `arguments`"


def _verify(problem: Problem, response: Response) -> Verdict:
    reference = problem.get("reference")
    wanted = reference.get("calls") if isinstance(reference, Mapping) else None
    if not isinstance(wanted, list | tuple):
        return bad_reference('the reference must be {"calls": [...]}')
    for number, call in enumerate(wanted, 1):
        if _mistake(call):
            return bad_reference(f"call {number} of the reference {_mistake(call)}")
    answer = response.answer.strip()
    if not answer:
        return empty_answer(response)
    try:
        made = calls_in(answer)
    except NotJson as error:
        return wrong(str(error), answer)
    left, right = Counter(map(canonical, made)), Counter(map(canonical, wanted))
    if left == right:
        return correct(f"{len(made)} of {len(wanted)} calls made as asked", answer)
    return wrong(_difference(left, right), answer)


def _difference(made: Counter[str], wanted: Counter[str]) -> str:
    missing, extra = [*(wanted - made)], [*(made - wanted)]
    parts = [f"missing {shown(missing[0], 90)}"] if missing else []
    parts += [f"not asked for {shown(extra[0], 90)}"] if extra else []
    return "; ".join(parts)
