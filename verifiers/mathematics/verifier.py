"""The `math` verifier: finds the answer, compares it exactly where possible, and else asks math-verify."""

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
"""Characters of the longest answer that is sent to math-verify."""
PAIR, ALONE, AGAIN = 0.8, 0.25, 0.15
"""Shares of the deadline: for the pair, then for its reference alone, then for a second try of a pair that crashed."""


@run_as("inline", cached=True)
def math(
    anchor: Anchor = "boxed_or_phrase",
    tolerance: float = 1e-6,
    percent: Percent = "lenient",
    symbolic: bool = True,
    deadline_s: float = 1.0,
    memory_mb: int = 2048,
) -> Verifier:
    """A verifier of math answers.

    The reference is the gold answer, as text or number; it may be boxed or follow `####`.

    `anchor`: whether only boxes hold answers, or also phrases such as "the final answer is". `tolerance`: relative; it
    applies only between a decimal and a number that no decimal writes in full. `percent`: whether `50%` may be written
    50 (lenient) or only 0.5 (strict). `symbolic`: whether math-verify (extra `math`) is asked where algebra is needed.
    It has at most `deadline_s` wall seconds and runs in a process with `memory_mb` of memory. Without it such a pair is
    `undecided`, never wrong.
    """
    if deadline_s <= 0 or memory_mb < 512 or not 0 <= tolerance < 0.1:
        raise ValueError("deadline_s must be above 0, memory_mb at least 512, tolerance from 0 to 0.1")
    if anchor not in ("boxed", "boxed_or_phrase") or percent not in ("lenient", "strict"):
        raise ValueError("anchor is `boxed` or `boxed_or_phrase`, percent is `lenient` or `strict`")
    rules = Rules(float(tolerance), percent)
    pool = shared(float(deadline_s), int(memory_mb)) if symbolic else None

    # Many rollouts of a group give the same answer, and one call of math-verify may take the whole deadline.
    @lru_cache(maxsize=8192)
    def ask_algebra(answer: str, gold: str) -> Verdict:
        return _algebra(pool, answer, gold)

    def verify(problem: Problem, response: Response) -> Verdict:
        # The reference first: when it is unusable, no response can be judged, whatever it says.
        gold = gold_answer(problem.get("reference"))
        if not gold:
            return bad_reference(f"the reference {shown(repr(problem.get('reference')))} is no math answer")
        if not _balanced(gold):
            return bad_reference(f"the braces of the reference {shown(gold)} do not match")
        if not response.answer.strip():
            return empty_answer(response)
        extraction = extract(response.answer, anchor)
        if extraction.answer is None:
            return no_answer(extraction.reason)
        answer = extraction.answer
        if answer == gold:
            return _verdict(True, answer, gold)
        if len(answer) > LONGEST:
            return wrong(f"the answer has {len(answer)} characters; at most {LONGEST} are compared", answer[:LONGEST])
        is_equal = equal(answer, gold, rules)
        if is_equal is not None:
            return _verdict(is_equal, answer, gold)
        # Unbalanced braces could close the `\boxed{...}` in which math-verify gets the answer.
        if len(answer) > LONGEST_FOR_ALGEBRA or not _balanced(answer):
            return wrong(f"{shown(answer)} cannot be read, and is not the reference {shown(gold)}", answer)
        try:
            return ask_algebra(answer, gold)
        except AlgebraUnavailable as error:
            return Verdict(None, "undecided", f"{shown(answer)} and {shown(gold)} need algebra: {error}", answer)

    return verify


def gold_answer(reference: Any) -> str:
    """The gold answer in a reference, or an empty string if there is none."""
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        return ""
    stripped = str(reference).strip()
    text = unboxed(stripped.strip("$ ")) if "box" in stripped else stripped
    # A whole solution instead of a bare answer: find the answer in it as in a response.
    if text == stripped and ("####" in text or r"\boxed" in text):
        return extract(text).answer or ""
    return text


def _verdict(is_equal: bool, answer: str, gold: str) -> Verdict:
    if is_equal:
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
    """Ask math-verify. Raises AlgebraUnavailable where the answer is not at fault.

    `lru_cache` keeps no exceptions, so such a pair is tried again when it comes up the next time.
    """
    if pool is None:
        raise AlgebraUnavailable("the recipe says symbolic: false")
    try:
        outcome = pool.equal(gold, answer, seconds=PAIR * pool.deadline_s)
    except Died as error:
        return _verdict_after_failure(pool, answer, gold, error)
    if outcome == "gold_unread":
        return wrong(f"{shown(answer)} is not the reference {shown(gold)}, which only text can equal", answer)
    return _verdict(outcome == "equal", answer, gold)


def _verdict_after_failure(pool: SymbolicPool, answer: str, gold: str, error: Died) -> Verdict:
    """The verdict after a pair failed in math-verify.

    If the reference alone fails too, the response is not at fault: raises AlgebraUnavailable. A pair whose worker
    crashed is tried once more; a pair that ran out of time is not.
    """
    try:
        # Comparing with 0 is cheap, so a failure here comes from the reference.
        pool.equal(gold, "0", seconds=ALONE * pool.deadline_s)
    except Died as reference_error:
        raise AlgebraUnavailable(f"the reference alone fails: {reference_error}") from reference_error
    try:
        if not error.timeout:
            return _verdict(pool.equal(gold, answer, seconds=AGAIN * pool.deadline_s) == "equal", answer, gold)
    except Died as second_error:
        error = second_error
    return Verdict(0.0, "timeout" if error.timeout else "wrong", f"{shown(answer)} cannot be compared: {error}", answer)
