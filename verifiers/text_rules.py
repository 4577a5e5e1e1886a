"""Two small rules on text: equal to a reference, and a well-formed thinking block."""

from __future__ import annotations

import unicodedata

from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier
from qwq_rl.verifiers.outcomes import bad_reference, correct, empty_answer, no_answer, shown, wrong

OPEN, CLOSE = "<think>", "</think>"


def exact() -> Verifier:
    """A verifier: the answer is the reference text, up to white space and Unicode composition; case counts."""
    return _exact


def think_format() -> Verifier:
    """A verifier: the thinking closes exactly once, opens at most once and before that, and an answer follows.

    The template may have opened the block in the prompt, so an opening tag is not demanded.
    """
    return _think_format


def _exact(problem: Problem, response: Response) -> Verdict:
    reference = problem.get("reference")
    if isinstance(reference, bool) or not isinstance(reference, str | int | float) or not str(reference).strip():
        return bad_reference(f"the reference must be a text, not {shown(repr(reference))}")
    answer = _normal(response.answer)
    if not answer:
        return empty_answer(response)
    if answer == _normal(str(reference)):
        return correct("the answer is the reference", answer)
    return wrong(f"{shown(answer)} is not {shown(reference)}", answer)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _think_format(problem: Problem, response: Response) -> Verdict:
    opened, closed = response.text.count(OPEN), response.text.count(CLOSE)
    if closed != 1:
        return wrong(f"{CLOSE} stands {closed} times, 1 was asked")
    if opened > 1 or (opened and response.text.index(OPEN) > response.text.index(CLOSE)):
        return wrong(f"{OPEN} stands {opened} times, at most 1 was asked, before {CLOSE}")
    if not response.answer.strip():
        return no_answer(f"there is no answer after {CLOSE}")
    return correct("the thinking closes once and an answer follows")
