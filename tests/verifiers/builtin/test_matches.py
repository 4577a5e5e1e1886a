"""Answers that equal a text, a set or a list of texts."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.builtin.json_text import NotJson
from qwq_rl.verifiers.builtin.matches import MOST_ITEMS, items_in


def said(name: str, answer: str, reference: Any, **params: Any) -> Verdict:
    verdict = load(name, params)({"reference": reference}, Response(text=answer, answer=answer))
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize(
    ("answer", "reference", "params", "score"),
    [
        ("red cat", "red  cat\n", {}, 1.0),
        ("cafe\u0301", "caf\u00e9", {}, 1.0),
        ("7", 7, {}, 1.0),
        ("Red cat", "red cat", {}, 0.0),
        ("Red cat", "red cat", {"case": False}, 1.0),
        ("red, cat!", "red cat", {"punctuation": False}, 1.0),
        ("red, cat!", "red cat", {}, 0.0),
        ("redcat", "red cat", {"white_space": "remove"}, 1.0),
        ("red  cat", "red cat", {"white_space": "keep"}, 0.0),
        ("red cat", ["dog", "red cat"], {}, 1.0),
        ("cat", ["dog", "red cat"], {}, 0.0),
        ("the red cat", "red cat", {}, 0.0),
    ],
)
def test_exact(answer: str, reference: Any, params: dict[str, Any], score: float) -> None:
    assert said("exact", answer, reference, **params).score == score


@pytest.mark.parametrize("reference", [None, "", " ", True, [], ["red", None], {"a": 1}])
def test_a_reference_of_exact_that_is_no_text_is_the_row_s_fault(reference: Any) -> None:
    assert said("exact", "red", reference).status == "bad_reference"


ITEMS = [
    '["red", "blue"]',
    "red, blue",
    "red，blue",
    "- red\n- blue",
    "1. red\n2) blue\n",
    "[red, blue]",
    '"red", "blue"',
]


@pytest.mark.parametrize("answer", [*ITEMS, '```json\n["red", "blue"]\n```', "Red\nBLUE"])
def test_items_are_read_in_every_form(answer: str) -> None:
    assert said("list_match", answer, ["red", "blue"]).score == 1.0
    assert said("set_match", answer, ["blue", "red"]).score == 1.0


@pytest.mark.parametrize(
    ("name", "answer", "params", "score"),
    [
        ("set_match", "b, a, a, c", {}, 1.0),
        ("set_match", "a, b", {}, 0.0),
        ("set_match", "a, b, c, d", {}, 0.0),
        ("list_match", "a, b, c", {}, 1.0),
        ("list_match", "a, c, b", {}, 0.0),
        ("list_match", "a, c, b", {"order": "free"}, 1.0),
        ("list_match", "a, b, c, c", {"order": "free"}, 0.0),
        ("set_match", "a, b", {"partial": True}, 0.8),
        ("set_match", "x, y", {"partial": True}, 0.0),
        ("list_match", "a, c, b", {"partial": True}, 1 / 3),
        ("list_match", "a, a, a", {"order": "free", "partial": True}, 1 / 3),
        ("set_match", "A, B, C", {"case": True}, 0.0),
    ],
)
def test_order_repeats_and_partial_credit(name: str, answer: str, params: dict[str, Any], score: float) -> None:
    assert said(name, answer, ["a", "b", "c"], **params).score == pytest.approx(score)


def test_numbers_compare_by_value_and_keep_every_digit() -> None:
    assert said("list_match", "1.0, 02, 3", [1, 2, "3.00"]).score == 1.0
    assert said("list_match", "1" * 39 + "2", ["1" * 40]).score == 0.0


def test_a_wrong_list_says_what_is_missing_and_what_is_too_much() -> None:
    assert said("set_match", "a, d", ["a", "b"]).reason == "1 of 2 items match: missing b; not asked for d"
    assert said("list_match", "b, a", ["a", "b"]).reason == "0 of 2 items match: the order differs"


def test_partial_credit_tells_how_much_a_failing_answer_gets() -> None:
    assert load("set_match", {"partial": True}).verifier.largest_failing_score == 0.99  # type: ignore[attr-defined]
    asked = [str(number) for number in range(500)]
    assert said("set_match", ", ".join(asked[1:]), asked, partial=True).score == 0.99


@pytest.mark.parametrize("reference", [None, "a, b", [], [["a"]], [True]])
def test_a_reference_that_is_no_list_of_items_is_the_row_s_fault(reference: Any) -> None:
    assert said("set_match", "a", reference).status == "bad_reference"


@pytest.mark.parametrize("answer", ['[["a"]]', "[true]", "a," * (MOST_ITEMS + 1), '["\\ud800"]x, [['])
def test_answers_that_are_no_list_of_items_are_wrong(answer: str) -> None:
    assert said("set_match", answer, ["a"]).score == 0.0


@pytest.mark.parametrize(("name", "params"), [("list_match", {"order": "any"}), ("exact", {"white_space": "x"})])
def test_unknown_values_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        load(name, params)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("exact", "red"), ("exact", ["red", "blue"]), ("set_match", ["a, b", 2]), ("list_match", [1])],
)
def test_the_answer_that_a_reference_stands_for_passes(name: str, reference: Any) -> None:
    answer = load(name).verifier.self_answer({"reference": reference})  # type: ignore[attr-defined]
    assert said(name, answer, reference).score == 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=10) | st.integers(), min_size=1))
def test_a_json_array_is_read_back(items: list[str | int]) -> None:
    assert items_in(json.dumps(items)) == [str(one) for one in items]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab12,;[](){}"\\\n-. \ud7ff、', max_size=60))
def test_reading_items_never_fails_otherwise_than_by_saying_so(text: str) -> None:
    with contextlib.suppress(NotJson):
        assert all(item and isinstance(item, str) for item in items_in(text))
