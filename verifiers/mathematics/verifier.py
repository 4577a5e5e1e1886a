"""The `math` verifier: the answer is found, compared exactly where possible, else by math-verify in its own process."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.mathematics.algebra.client import AlgebraUnavailable, Died, SymbolicPool, shared
from qwq_rl.verifiers.mathematics.comparing.checker import equal
from qwq_rl.verifiers.mathematics.comparing.comparison import Rules
from qwq_rl.verifiers.mathematics.comparing.quantities import Percent
from qwq_rl.verifiers.mathematics.reading.answer import LONGEST
from qwq_rl.verifiers.mathematics.reading.extraction import Anchor, extract, unboxed
from qwq_rl.verifiers.verdicts import bad_reference, correct, empty_answer, no_answer, shown, wrong

LONGEST_FOR_ALGEBRA = 1000
"""Characters of an answer that math-verify is still asked about."""
PAIR, ALONE, AGAIN = 0.8, 0.25, 0.15
"""Shares of the deadline: for a pair, then for its reference alone, then for the pair where it crashed."""


@run_as("inline", cached=True)
def math(
    anchor: Anchor = "boxed_or_phrase",
    tolerance: float = 1e-6,
    percent: Percent = "lenient",
    symbolic: bool = True,
    deadline_s: float = 1.0,
    memory_mb: int = 2048,
) -> Verifier:
    """A verifier of math answers; the reference is the gold answer, as text or number, boxed or after `####` too.

    `anchor`: whether only boxes hold answers, or also phrases such as "the final answer is". `tolerance`: relative,
    between a decimal and a number that no decimal writes in full. `percent`: whether `50%` may be written 50 (lenient)
    or only 0.5 (strict). `symbolic`: whether math-verify (extra `math`) is asked where algebra is needed, for at most
    `deadline_s` wall seconds in a process of `memory_mb`; without it such a pair is `undecided`, never wrong.
    """
    if deadline_s <= 0 or memory_mb < 512 or not 0 <= tolerance < 0.1:
        raise ValueError("deadline_s must be above 0, memory_mb at least 512, tolerance from 0 to 0.1")
    if anchor not in ("boxed", "boxed_or_phrase") or percent not in ("lenient", "strict"):
        raise ValueError("anchor is `boxed` or `boxed_or_phrase`, percent is `lenient` or `strict`")
    rules = Rules(float(tolerance), percent)
    pool = shared(float(deadline_s), int(memory_mb)) if symbolic else None

    @lru_cache(maxsize=8192)
    def compared(answer: str, gold: str) -> Verdict:
        return _algebra(pool, answer, gold)

    def verify(problem: Problem, response: Response) -> Verdict:
        gold = gold_answer(problem.get("reference"))
        if not gold:
            return bad_reference(f"the reference {shown(repr(problem.get('reference')))} is no math answer")
        if not _balanced(gold):
            return bad_reference(f"the braces of the reference {shown(gold)} do not match")
        if not response.answer.strip():
            return empty_answer(response)
        found = extract(response.answer, anchor)
        if found.answer is None:
            return no_answer(found.reason)
        answer = found.answer
        if answer == gold:
            return _verdict(True, answer, gold)
        if len(answer) > LONGEST:
            return wrong(f"the answer has {len(answer)} characters; at most {LONGEST} are compared", answer[:LONGEST])
        same = equal(answer, gold, rules)
        if same is not None:
            return _verdict(same, answer, gold)
        if len(answer) > LONGEST_FOR_ALGEBRA or not _balanced(answer):
            return wrong(f"{shown(answer)} cannot be read, and is not the reference {shown(gold)}", answer)
        try:
            return compared(answer, gold)
        except AlgebraUnavailable as error:
            return Verdict(None, "undecided", f"{shown(answer)} and {shown(gold)} need algebra: {error}", answer)

    return verify


def gold_answer(reference: Any) -> str:
    """The gold answer in a reference, or an empty string where there is none."""
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        return ""
    stripped = str(reference).strip()
    text = unboxed(stripped.strip("$ ")) if "box" in stripped else stripped
    if text == stripped and ("####" in text or r"\boxed" in text):
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


def _algebra(pool: SymbolicPool | None, answer: str, gold: str) -> Verdict:
    """Ask math-verify; raises AlgebraUnavailable where the failure is not the answer's: not to be remembered."""
    if pool is None:
        raise AlgebraUnavailable("the recipe says symbolic: false")
    try:
        outcome = pool.equal(gold, answer, seconds=PAIR * pool.deadline_s)
    except Died as error:
        return _failed(pool, answer, gold, error)
    if outcome == "gold_unread":
        return wrong(f"{shown(answer)} is not the reference {shown(gold)}, which only text can equal", answer)
    return _verdict(outcome == "equal", answer, gold)


def _failed(pool: SymbolicPool, answer: str, gold: str, error: Died) -> Verdict:
    """A failure is the response's doing where the reference compares with 0, and a crash where it comes back."""
    try:
        pool.equal(gold, "0", seconds=ALONE * pool.deadline_s)
    except Died as alone:
        raise AlgebraUnavailable(f"the reference alone fails: {alone}") from alone
    try:
        if not error.timeout:
            return _verdict(pool.equal(gold, answer, seconds=AGAIN * pool.deadline_s) == "equal", answer, gold)
    except Died as again:
        error = again
    return Verdict(0.0, "timeout" if error.timeout else "wrong", f"{shown(answer)} cannot be compared: {error}", answer)
