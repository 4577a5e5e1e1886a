"""Answers that equal a text, a set or a list of texts."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

from qwq_rl.errors import UserError
from qwq_rl.verifiers.builtin.json_text import NotJson, parse_one, unfenced
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import ALMOST, bad_reference, correct, empty_answer, no_answer, shown, wrong

WhiteSpace = Literal["keep", "collapse", "remove"]
Normal = Callable[[str], str]
NUMBER = re.compile(r"[+-]?\d{1,40}(?:\.\d{1,40})?")
BULLET = re.compile(r"(?:[-*+•]|\d{1,4}[.)])\s{1,9}(?=\S)")
BRACKETS = ("[]", "()", "{}")
MOST_ITEMS = 10_000


@run_as("inline", cached=True)
def exact(case: bool = True, punctuation: bool = True, white_space: WhiteSpace = "collapse") -> Verifier:
    """A verifier: the whole answer is the reference text, or one of a list of them.

    `case` and `punctuation` say whether they count; white space is kept, collapsed to single blanks, or removed, and
    never counts at the ends. Texts are compared in Unicode's composed form. Raises UserError for other values.
    """
    normal = _normal(case, punctuation, white_space)

    def verify(problem: Problem, response: Response) -> Verdict:
        reference = problem.get("reference")
        accepted = list(reference) if isinstance(reference, list | tuple) else [reference]
        if not accepted or not all(_is_item(one) and normal(str(one)).strip() for one in accepted):
            return bad_reference(f"the reference must be a text or a list of texts, not {shown(repr(reference))}")
        answer = normal(response.answer)
        if not answer.strip():
            return empty_answer(response)
        if any(answer == normal(str(one)) for one in accepted):
            return correct("the answer is the reference", answer)
        rest = f" or {len(accepted) - 1} more" if len(accepted) > 1 else ""
        return wrong(f"{shown(answer)} is not {shown(accepted[0])}{rest}", answer)

    verify.self_answer = _first  # type: ignore[attr-defined]
    return verify


@run_as("inline", cached=True)
def set_match(case: bool = False, partial: bool = False) -> Verifier:
    """A verifier: the answer names exactly the items of the reference, a list; order and repeats are free.

    The answer is a JSON array, one item a line (bullets and numbers before them are dropped), or items between commas.
    Numbers compare by value. With `partial` the score is F1 = 2 * shared / (named + asked), else 1 or 0.
    """

    def shared(named: list[str], asked: list[str]) -> tuple[int, int, int]:
        left, right = set(named), set(asked)
        return len(left & right), len(left), len(right)

    return _items_verifier(shared, case, partial)


@run_as("inline", cached=True)
def list_match(order: Literal["kept", "free"] = "kept", case: bool = False, partial: bool = False) -> Verifier:
    """A verifier: the answer lists the items of the reference, repeats included, in its order or in any.

    The answer is read as by `set_match`. With `partial` the score is F1 = 2 * shared / (named + asked), where an item
    is shared if it stands at its place (`kept`) or as often as it is in both (`free`). Raises UserError for another
    order.
    """
    if order not in ("kept", "free"):
        raise UserError(f"`order` must be kept or free, not {order!r}")

    def shared(named: list[str], asked: list[str]) -> tuple[int, int, int]:
        if order == "kept":
            both = sum(left == right for left, right in zip(named, asked, strict=False))
        else:
            both = (Counter(named) & Counter(asked)).total()
        return both, len(named), len(asked)

    return _items_verifier(shared, case, partial)


def items_in(answer: str) -> list[str]:
    """The items of an answer: of a JSON array, else its lines, else between commas.

    Raises NotJson for arrays of anything but texts and numbers, and for more than `MOST_ITEMS` items.
    """
    text = unfenced(answer).strip()
    try:
        value = parse_one(text) if text.startswith("[") else None
    except NotJson:
        value = None
    if isinstance(value, list):
        _refuse_many(value)
        if not all(_is_item(one) for one in value):
            raise NotJson("an item of the array is no text or number")
        return [str(one) for one in value]
    if text[:1] + text[-1:] in BRACKETS:
        text = text[1:-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else re.split("[,，、;；]", "".join(lines))
    _refuse_many(parts)
    if len(lines) > 1:
        parts = [BULLET.sub("", line, count=1) for line in lines]
    items = [part.strip().rstrip(",，、;；").strip() for part in parts]
    return [
        item[1:-1] if len(item) > 2 and item[0] == item[-1] and item[0] in "\"'`" else item for item in items if item
    ]


def _refuse_many(items: Sequence[Any]) -> None:
    if len(items) > MOST_ITEMS:
        raise NotJson(f"the answer has more than {MOST_ITEMS} items")


def _items_verifier(
    shared: Callable[[list[str], list[str]], tuple[int, int, int]], case: bool, partial: bool
) -> Verifier:
    normal = _normal(case, True, "collapse")

    def verify(problem: Problem, response: Response) -> Verdict:
        reference = problem.get("reference")
        if not isinstance(reference, list | tuple) or not reference or not all(_is_item(one) for one in reference):
            return bad_reference(f"the reference must be a list of texts or numbers, not {shown(repr(reference))}")
        if not response.answer.strip():
            return empty_answer(response)
        try:
            named = [_canonical(one, normal) for one in items_in(response.answer)]
        except NotJson as error:
            return wrong(str(error), response.answer)
        if not named:
            return no_answer("the answer names no items")
        asked = [_canonical(str(one), normal) for one in reference]
        both, left, right = shared(named, asked)
        f1 = 2 * both / (left + right)
        metrics = {"f1": f1, "precision": both / left, "recall": both / right}
        if both == left == right:
            return Verdict(1.0, "correct", f"all {right} items, no other", ", ".join(named), metrics)
        score, status = (min(f1, ALMOST), "partial") if partial and both else (0.0, "wrong")
        return Verdict(score, status, _difference(named, asked, both), ", ".join(named), metrics)

    verify.self_answer = _as_json  # type: ignore[attr-defined]
    if partial:
        verify.largest_failing_score = ALMOST  # type: ignore[attr-defined]
    return verify


def _difference(named: list[str], asked: list[str], both: int) -> str:
    left, right = Counter(named), Counter(asked)
    missing, extra = [*(right - left)], [*(left - right)]
    parts = [f"missing {shown(missing[0])}"] if missing else []
    parts += [f"not asked for {shown(extra[0])}"] if extra else []
    return f"{both} of {len(asked)} items match: {'; '.join(parts) or 'the order differs'}"


def _first(problem: Problem) -> str | None:
    """The answer that a reference of `exact` stands for."""
    reference = problem.get("reference")
    accepted = reference if isinstance(reference, list | tuple) else [reference]
    return str(accepted[0]) if accepted and _is_item(accepted[0]) else None


def _as_json(problem: Problem) -> str | None:
    """The answer that a list of items stands for."""
    reference = problem.get("reference")
    return json.dumps(list(reference), ensure_ascii=False) if isinstance(reference, list | tuple) else None


def _is_item(one: Any) -> bool:
    return isinstance(one, str | int | float) and not isinstance(one, bool)


def _canonical(item: str, normal: Normal) -> str:
    """One form for equal items: 1, 1.0 and 01 are the same number."""
    text = normal(item).strip()
    return str(Fraction(text)) if NUMBER.fullmatch(text) else text


def _normal(case: bool, punctuation: bool, white_space: WhiteSpace) -> Normal:
    if white_space not in get_args(WhiteSpace):
        raise UserError(f"`white_space` must be keep, collapse or remove, not {white_space!r}")
    joint = {"keep": None, "collapse": " ", "remove": ""}[white_space]

    def normal(text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        if not case:
            text = text.casefold()
        if not punctuation:
            text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
        return text.strip() if joint is None else joint.join(text.split())

    return normal
