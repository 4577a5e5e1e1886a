"""Math answers: found by `math_extraction`, decided exactly where possible, else by math-verify in its own process."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier
from qwq_rl.verifiers.math_exact import decide
from qwq_rl.verifiers.math_extraction import extract, unboxed
from qwq_rl.verifiers.math_process import Died, MathProcess, Unavailable, shared
from qwq_rl.verifiers.outcomes import bad_reference, correct, empty_answer, fault, no_answer, shown, wrong

LONGEST = 1000
"""Characters of an answer that is still compared."""


def math(deadline_s: float = 5.0, memory_mb: int = 2048) -> Verifier:
    """A verifier of math answers; the reference is the gold answer, as text or number, boxed or after `####` too.

    `deadline_s`: wall seconds that math-verify may take over one pair. `memory_mb`: of its process. Without the extra
    `math`, a pair that needs algebra is a fault, never a wrong answer.
    """
    if deadline_s <= 0 or memory_mb < 512:
        raise ValueError("deadline_s must be above 0, memory_mb at least 512")
    process = shared(float(deadline_s), int(memory_mb))

    @lru_cache(maxsize=8192)
    def compared(answer: str, gold: str) -> Verdict:
        return _algebra(process, answer, gold)

    def verify(problem: Problem, response: Response) -> Verdict:
        gold = gold_answer(problem.get("reference"))
        if not gold:
            return bad_reference(f"the reference {shown(repr(problem.get('reference')))} is no math answer")
        if not response.answer.strip():
            return empty_answer(response)
        found = extract(response.answer)
        if found.answer is None:
            return no_answer(found.reason)
        answer = found.answer
        same = decide(answer, gold)
        if same is not None:
            return _verdict(same, answer, gold)
        if len(answer) > LONGEST:
            return wrong(f"the answer has {len(answer)} characters; at most {LONGEST} are compared", answer[:LONGEST])
        if not _balanced(answer):
            return wrong(f"the braces of {shown(answer)} do not match", answer)
        try:
            return compared(answer, gold)
        except Unavailable as error:
            return fault(f"{shown(answer)} and {shown(gold)} need algebra: {error}")

    return verify


def gold_answer(reference: Any) -> str:
    """The gold answer in a reference, or an empty string where there is none."""
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        return ""
    text = unboxed(str(reference).strip())
    if text == str(reference).strip() and ("####" in text or r"\boxed" in text):
        return extract(text).answer or ""
    return text


def _verdict(same: bool, answer: str, gold: str) -> Verdict:
    if same:
        return correct(f"{shown(answer)} equals the reference {shown(gold)}", answer)
    return wrong(f"{shown(answer)} is not the reference {shown(gold)}", answer)


def _balanced(text: str) -> bool:
    depth, escaped = 0, False
    for char in text:
        depth += 0 if escaped else (char == "{") - (char == "}")
        escaped = char == "\\" and not escaped
        if depth < 0:
            return False
    return depth == 0


def _algebra(process: MathProcess, answer: str, gold: str) -> Verdict:
    """Ask math-verify; raises Unavailable where the failure is not the answer's doing, so that it is not remembered."""
    try:
        outcome = process.equal(gold, answer)
    except Died:
        return _again(process, answer, gold)
    if outcome == "gold_unread":
        return bad_reference(f"math-verify cannot read the reference {shown(gold)}")
    return _verdict(outcome == "equal", answer, gold)


def _again(process: MathProcess, answer: str, gold: str) -> Verdict:
    """A failure that comes back alone, while the reference compares with itself and with 0, is the response's doing."""
    try:
        if process.equal(gold, gold) != "equal":
            return bad_reference(f"the reference {shown(gold)} does not equal itself")
        process.equal(gold, "0")
    except Died as error:
        raise Unavailable(f"the reference alone fails: {error}") from error
    try:
        return _verdict(process.equal(gold, answer) == "equal", answer, gold)
    except Died as error:
        status = "timeout" if error.timeout else "wrong"
        return Verdict(0.0, status, f"{shown(answer)} cannot be compared: {error}", answer)
