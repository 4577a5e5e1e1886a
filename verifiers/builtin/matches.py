"""Answers that must equal a text, a set or a list of texts."""

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
"""Brings a text into the form in which texts are compared."""
NUMBER = re.compile(r"[+-]?\d{1,40}(?:\.\d{1,40})?")
BULLET = re.compile(r"(?:[-*+•]|\d{1,4}[.)])\s{1,9}(?=\S)")
"""A bullet or a number before an item."""
BRACKETS = ("[]", "()", "{}")
MOST_ITEMS = 10_000


@run_as("inline", cached=True)
def exact(case: bool = True, punctuation: bool = True, white_space: WhiteSpace = "collapse") -> Verifier:
    """A verifier: the whole answer is the reference text, or one of a list of them.

    `case` and `punctuation` say whether they count. White space is kept, collapsed to single blanks, or removed; at the
    ends it never counts. Texts are compared in Unicode's composed form (NFC). Raises UserError for another
    `white_space`.
    """
    normalize = _normalizer(case, punctuation, white_space)

    def verify(problem: Problem, response: Response) -> Verdict:
        reference = problem.get("reference")
        accepted = list(reference) if isinstance(reference, list | tuple) else [reference]
        if not accepted or not all(_is_item(text) and normalize(str(text)).strip() for text in accepted):
            return bad_reference(f"the reference must be a text or a list of texts, not {shown(repr(reference))}")
        answer = normalize(response.answer)
        if not answer.strip():
            return empty_answer(response)
        if any(answer == normalize(str(text)) for text in accepted):
            return correct("the answer is the reference", answer)
        rest = f" or {len(accepted) - 1} more" if len(accepted) > 1 else ""
        return wrong(f"{shown(answer)} is not {shown(accepted[0])}{rest}", answer)

    verify.self_answer = _self_answer_of_exact  # type: ignore[attr-defined]
    return verify


@run_as("inline", cached=True)
def set_match(case: bool = False, partial: bool = False) -> Verifier:
    """A verifier: the answer names exactly the items of the reference, a list. Order and repeats do not matter.

    The answer is a JSON array, or one item per line (bullets and numbers before them are dropped), or items separated
    by commas. Numbers compare by value. With `partial` the score is F1 = 2 * shared / (named + asked), else 1 or 0.
    """

    def count_shared(named_items: list[str], asked_items: list[str]) -> tuple[int, int, int]:
        named_set, asked_set = set(named_items), set(asked_items)
        return len(named_set & asked_set), len(named_set), len(asked_set)

    return _item_verifier(count_shared, case, partial)


@run_as("inline", cached=True)
def list_match(order: Literal["kept", "free"] = "kept", case: bool = False, partial: bool = False) -> Verifier:
    """A verifier: the answer lists the items of the reference, repeats included, in the same order or in any.

    The answer is read as by `set_match`. With `partial` the score is F1 = 2 * shared / (named + asked). With order
    `kept` an item is shared if it stands at its place; with `free` it is shared as often as it occurs in both. Raises
    UserError for another `order`.
    """
    if order not in ("kept", "free"):
        raise UserError(f"`order` must be kept or free, not {order!r}")

    def count_shared(named_items: list[str], asked_items: list[str]) -> tuple[int, int, int]:
        if order == "kept":
            shared_count = sum(
                answer_item == gold_item for answer_item, gold_item in zip(named_items, asked_items, strict=False)
            )
        else:
            shared_count = (Counter(named_items) & Counter(asked_items)).total()
        return shared_count, len(named_items), len(asked_items)

    return _item_verifier(count_shared, case, partial)


def items_in(answer: str) -> list[str]:
    """The items of an answer: those of a JSON array, else its lines, else the parts between commas.

    Raises NotJson for an array with anything but texts and numbers, and for more than `MOST_ITEMS` items.
    """
    text = unfenced(answer).strip()
    try:
        value = parse_one(text) if text.startswith("[") else None
    except NotJson:
        value = None
    if isinstance(value, list):
        _refuse_many(value)
        if not all(_is_item(item_value) for item_value in value):
            raise NotJson("an item of the array is no text or number")
        return [str(item_value) for item_value in value]
    # A list that is not JSON, such as {a, b}.
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


def _item_verifier(
    count_shared: Callable[[list[str], list[str]], tuple[int, int, int]], case: bool, partial: bool
) -> Verifier:
    """A verifier of lists.

    `count_shared` gets the items named and asked. It returns how many are shared, how many were named and how many were
    asked.
    """
    normalize = _normalizer(case, True, "collapse")

    def verify(problem: Problem, response: Response) -> Verdict:
        reference = problem.get("reference")
        if not isinstance(reference, list | tuple) or not reference or not all(_is_item(item) for item in reference):
            return bad_reference(f"the reference must be a list of texts or numbers, not {shown(repr(reference))}")
        if not response.answer.strip():
            return empty_answer(response)
        try:
            named_items = [_canonical_item(item, normalize) for item in items_in(response.answer)]
        except NotJson as error:
            return wrong(str(error), response.answer)
        if not named_items:
            return no_answer("the answer names no items")
        asked_items = [_canonical_item(str(item), normalize) for item in reference]
        shared_count, named_count, asked_count = count_shared(named_items, asked_items)
        f1 = 2 * shared_count / (named_count + asked_count)
        metrics = {"f1": f1, "precision": shared_count / named_count, "recall": shared_count / asked_count}
        if shared_count == named_count == asked_count:
            return Verdict(1.0, "correct", f"all {asked_count} items, no other", ", ".join(named_items), metrics)
        score, status = (min(f1, ALMOST), "partial") if partial and shared_count else (0.0, "wrong")
        return Verdict(
            score, status, _difference(named_items, asked_items, shared_count), ", ".join(named_items), metrics
        )

    verify.self_answer = _self_answer_of_items  # type: ignore[attr-defined]
    if partial:
        verify.largest_failing_score = ALMOST  # type: ignore[attr-defined]
    return verify


def _difference(named_items: list[str], asked_items: list[str], shared_count: int) -> str:
    """How many items match, and one that is missing and one that was not asked for."""
    named_counts, asked_counts = Counter(named_items), Counter(asked_items)
    missing, extra = [*(asked_counts - named_counts)], [*(named_counts - asked_counts)]
    parts = [f"missing {shown(missing[0])}"] if missing else []
    parts += [f"not asked for {shown(extra[0])}"] if extra else []
    return f"{shared_count} of {len(asked_items)} items match: {'; '.join(parts) or 'the order differs'}"


def _self_answer_of_exact(problem: Problem) -> str | None:
    """A right answer for a reference of `exact`: its first text."""
    reference = problem.get("reference")
    accepted = reference if isinstance(reference, list | tuple) else [reference]
    return str(accepted[0]) if accepted and _is_item(accepted[0]) else None


def _self_answer_of_items(problem: Problem) -> str | None:
    """A right answer for a reference that is a list of items."""
    reference = problem.get("reference")
    return json.dumps(list(reference), ensure_ascii=False) if isinstance(reference, list | tuple) else None


def _is_item(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _canonical_item(item: str, normalize: Normal) -> str:
    """The same text for equal items: 1, 1.0 and 01 are the same number."""
    text = normalize(item).strip()
    # A Fraction keeps every digit, which a float would not.
    return str(Fraction(text)) if NUMBER.fullmatch(text) else text


def _normalizer(case: bool, punctuation: bool, white_space: WhiteSpace) -> Normal:
    if white_space not in get_args(WhiteSpace):
        raise UserError(f"`white_space` must be keep, collapse or remove, not {white_space!r}")
    separator = {"keep": None, "collapse": " ", "remove": ""}[white_space]

    def normalize(text: str) -> str:
        # One letter with an accent can be written as one or as two characters.
        text = unicodedata.normalize("NFC", text)
        if not case:
            text = text.casefold()
        if not punctuation:
            text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
        return text.strip() if separator is None else separator.join(text.split())

    return normalize
