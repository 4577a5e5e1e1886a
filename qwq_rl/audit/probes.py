"""The responses that an audit gives to a verifier: those that must pass, must fail, or must be judged in time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwq_rl.data.chat import CLOSE, OPEN, split_thinking
from qwq_rl.data.row import Check, Row
from qwq_rl.verifiers import Response, Verifier

GARBAGE = ("asdf ;; Qwerty ~~ 77~", "I am NOT sure. It could be anything, or nothing at all.")
"""Answers that are right for no row."""

_BULK = 200_000
HOSTILE: Mapping[str, str] = {
    "a very long word": "a" * _BULK,
    "a very long number": rf"\boxed{{{'9' * 50_000}}}",
    "very deep brackets": rf"\boxed{{{'(' * 5_000}1{')' * 5_000}}}",
    "boxes that never close": r"\boxed{" * 5_000,
    "a tower of powers": r"\boxed{9^{9^{9^{9^{9}}}}} = 9**9**9**9",
    "very deep lists": "[" * 50_000,
    "very many tags": "<tool_call>{" * 5_000,
    "text that regular expressions go back over": ("the answer is " + " " * 500) * 100 + "x" * 2_000 + "!",
}
"""Texts that have made checkers run for minutes, by a description of each."""

BOX = r"\boxed{"
_LETTER = re.compile(r"((?:\\(?:text|textbf|textrm|mathrm|mathbf)\{)?\W*)([A-Ja-j])(\W*)")
_LONGEST = 300
"""Longest answer, in characters, from which `hedges` makes texts."""
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


@dataclass(frozen=True)
class Claim:
    """Responses to a row; at least one of them must pass."""

    kind: Literal["solution", "reference"]
    responses: tuple[Response, ...]
    needed: bool
    """True: the row is broken if none passes. False: the row is then only not proven by this claim."""
    wrong: tuple[str, ...] = ()
    """For each response, the answer in the same form that another reference stands for; or empty."""


def answered(answer: str, reasoning: str = "hm") -> Response:
    """A well-formed response with this answer."""
    text = f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}"
    return Response(text, answer.strip(), reasoning, token_ids=_tokens(text))


def as_solution(text: str, opened: bool) -> Response:
    """A row's `solution` as a response. `opened`: it follows a prompt that has already opened the thinking."""
    reasoning, answer = split_thinking(text, opened)
    messages = ({"role": "assistant", "content": text},)
    return Response(text, answer.strip(), reasoning.strip(), messages=messages, token_ids=_tokens(text))


def _tokens(text: str) -> range:
    """About as many token ids as the text would have (4 characters each), for rules that count tokens."""
    return range(1 + len(text) // 4)


def claims(row: Row, checks: Sequence[tuple[Check, Verifier]], opened: bool) -> list[Claim]:
    """Return what must pass: the row's solution, and the answers that each verifier's reference stands for."""
    result = []
    solution = row.get("solution")
    if solution is not None:
        result.append(Claim("solution", (as_solution(solution, opened),), needed=True))
    scoring = [(check, verifier) for check, verifier in checks if check.role == "score"]
    for check, verifier in scoring:
        problem = {**row, "reference": check.reference}
        texts = self_answers(problem, verifier)
        # Where several verifiers must pass, the answer to one of them need not be an answer to all.
        needed = len(scoring) == 1 and (solution is None or _declared(verifier) is not None)
        if texts:
            result.append(
                Claim("reference", tuple(map(answered, texts)), needed, _wrong(problem, verifier, len(texts)))
            )
    return result


def _wrong(problem: Row, verifier: Verifier, count: int) -> tuple[str, ...]:
    """The answers that a wrong reference stands for: exactly `count` of them, or none."""
    if not _is_plain(problem["reference"]):
        return ()
    try:
        texts = self_answers({**problem, "reference": decoy(problem["reference"])}, verifier)
    except Exception:  # a verifier's own `self_answer` need not accept a made-up reference
        return ()
    return tuple(texts) if len(texts) == count else ()


def self_answers(problem: Row, verifier: Verifier) -> list[str]:
    """The answers that the problem's reference stands for; at least one must pass. Empty if it is no answer.

    The verifier may have a method `self_answer(problem) -> str | None` that gives it. Without one, a reference that is
    a text or a number is itself the answer, as it is or boxed.
    """
    declared = _declared(verifier)
    if declared is not None:
        text = declared(problem)
        return [] if text is None else [str(text)]
    reference = problem.get("reference")
    return [str(reference), rf"\boxed{{{reference}}}"] if _is_plain(reference) else []


def _declared(verifier: Verifier) -> Callable[[Row], str | None] | None:
    """The verifier's own `self_answer`, or None."""
    # A loaded verifier holds the user's own object in its attribute `verifier`.
    method: Callable[[Row], str | None] | None = getattr(getattr(verifier, "verifier", verifier), "self_answer", None)
    return method


def _is_plain(reference: Any) -> bool:
    """Whether a reference is a number or a text that is not empty."""
    return isinstance(reference, str | int | float) and not isinstance(reference, bool) and bool(str(reference).strip())


def decoy(reference: Any) -> str | int:
    """An answer of the same form as `reference` that is hardly right: another letter, number, text or the opposite."""
    if not isinstance(reference, str):
        return 1003
    text = str(reference).strip()
    if text.startswith(BOX) and text.endswith("}"):
        return f"{BOX}{decoy(text[len(BOX) : -1])}}}"
    letter = _LETTER.fullmatch(text)
    if letter:
        other_letter = "B" if letter[2] in "Aa" else "A"
        return letter[1] + (other_letter if letter[2].isupper() else other_letter.lower()) + letter[3]
    if text.casefold() in _OPPOSITES:
        return _OPPOSITES[text.casefold()]
    return "1003" if any(char.isdigit() for char in text) or "\\" in text else "neither of these"


def unanswered(right: str) -> list[Response]:
    """Responses without an answer that have the right one in their thinking."""
    return [
        Response(f"{OPEN}\n{right}\n{CLOSE}\n\n", "", right, token_ids=_tokens(right)),
        Response(f"{OPEN}\n{right}", "", right, token_ids=_tokens(right)),
    ]


def hedges(right: str, wrong: str) -> list[str]:
    """Answers that name the right answer and a wrong one. None if the right one is long or has several lines."""
    if len(right) > _LONGEST or "\n" in right or "####" in right:
        return []
    texts = [f"{right} or {wrong}", f"{wrong}, {right}"]
    if right.startswith(BOX) and wrong.startswith(BOX):
        texts.append(rf"{right[:-1]} \text{{ or }} {wrong.removeprefix(BOX)}")
    return texts
