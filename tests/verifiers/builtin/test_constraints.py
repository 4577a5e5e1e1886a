"""Constraints on an answer's text, each with the reason it gives when it fails."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_rl.verifiers import Response, Verdict, load


def said(answer: str, *rules: Any) -> Verdict:
    verdict = load("constraints")({"reference": {"all": list(rules)}}, Response(text=answer, answer=answer))
    assert isinstance(verdict, Verdict)
    return verdict


HELD = [
    ("RED CAT", {"kind": "upper"}),
    ("RED CAT 2 !", {"kind": "upper"}),
    ("red cat", {"kind": "lower"}),
    ("red , cat !", {"kind": "words", "count": 2}),
    ("red cat", {"kind": "min_words", "count": 2}),
    ("red cat", {"kind": "max_words", "count": 2}),
    ("hello Ann !", {"kind": "contains", "text": "Ann"}),
    ("hello Ann!", {"kind": "contains", "any": ["Bob", "Ann"]}),
    ("snow", {"kind": "forbid", "any": ["no", "go away"]}),
    ("hi Ann", {"kind": "starts_with", "any": ["hello", "hi"]}),
    ("hi Ann!", {"kind": "ends_with", "text": "!"}),
    ("ha ha ha", {"kind": "repeat", "text": "ha", "count": 3}),
    ("hello Ann , all the best for your tea !", {"kind": "no_repeat"}),
]
BROKEN = [
    ("RED Cat", {"kind": "upper"}, "'Cat' is not upper case"),
    ("1 2", {"kind": "upper"}, "has no letter"),
    ("red Cat", {"kind": "lower"}, "'Cat' is not lower case"),
    ("a red cat ran", {"kind": "words", "count": 3}, "has 4 words, 3 were asked"),
    ("red", {"kind": "words", "count": 3}, "has 1 word, 3 were asked"),
    ("red", {"kind": "min_words", "count": 2}, "has 1 word, at least 2 were asked"),
    ("a red cat", {"kind": "max_words", "count": 2}, "has 3 words, at most 2 were asked"),
    ("hello Anna", {"kind": "contains", "text": "Ann"}, "does not contain 'Ann'"),
    ("hello ann", {"kind": "contains", "text": "Ann"}, "does not contain 'Ann'"),
    ("No way", {"kind": "forbid", "text": "no"}, "contains 'no', which is forbidden"),
    ("his hat", {"kind": "starts_with", "any": ["hello", "hi"]}, "'hello' or 'hi' was asked"),
    ("hi Ann", {"kind": "ends_with", "text": "!"}, "ends with 'hi Ann', '!' was asked"),
    ("ha ha", {"kind": "repeat", "text": "ha", "count": 3}, "is not 'ha' written 3 times"),
    ("tea Ann tea Ann", {"kind": "no_repeat"}, "repeats 'tea ann'"),
    ("hello hello Ann", {"kind": "no_repeat"}, "repeats 'hello hello'"),
]


@pytest.mark.parametrize(("answer", "rule"), HELD)
def test_a_constraint_that_holds_passes(answer: str, rule: Any) -> None:
    assert said(answer, rule).score == 1.0


@pytest.mark.parametrize(("answer", "rule", "reason"), BROKEN)
def test_a_constraint_that_is_broken_says_how(answer: str, rule: Any, reason: str) -> None:
    verdict = said(answer, rule)
    assert (verdict.score, verdict.status) == (0.0, "wrong")
    assert reason in verdict.reason


def test_all_must_hold_and_the_share_that_holds_is_a_metric() -> None:
    verdict = said("RED CAT", {"kind": "upper"}, {"kind": "words", "count": 3})
    assert (verdict.score, verdict.metrics) == (0.0, {"held": 0.5})
    assert verdict.reason == "the answer has 2 words, 3 were asked"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (None, "with at least one constraint"),
        ({"all": []}, "with at least one constraint"),
        ({"all": [{"kind": "uper"}]}, "constraint 1: unknown kind 'uper'; did you mean 'upper'?"),
        ({"all": [{}]}, "unknown kind None"),
        ({"all": ["upper"]}, "unknown kind None"),
        ({"all": [{"kind": "upper", "count": 3}]}, "upper takes no parameter, it has count"),
        ({"all": [{"kind": "upper"}, {"kind": "words"}]}, "constraint 2: words takes count, it has none"),
        ({"all": [{"kind": "words", "count": 0}]}, "must be a whole number above 0, not 0"),
        ({"all": [{"kind": "words", "count": True}]}, "must be a whole number above 0, not True"),
        ({"all": [{"kind": "words", "count": "3"}]}, "must be a whole number above 0, not '3'"),
        ({"all": [{"kind": "contains", "text": "a", "any": ["b"]}]}, "contains takes text or any, it has any, text"),
        ({"all": [{"kind": "contains", "any": []}]}, "at least one text"),
        ({"all": [{"kind": "contains", "text": " "}]}, "must be strings that are not empty"),
        ({"all": [{"kind": "forbid", "any": "no"}]}, "must be strings that are not empty"),
    ],
)
def test_a_bad_reference_says_what_would_be_right(reference: Any, reason: str) -> None:
    verdict = load("constraints")({"reference": reference}, Response(text="a", answer="a"))
    assert isinstance(verdict, Verdict)
    assert (verdict.score, verdict.status) == (None, "bad_reference")
    assert reason in verdict.reason


@given(st.lists(st.sampled_from(["red", "cat", "sun", ",", "!"]), min_size=1, max_size=12))
def test_the_count_of_words_is_the_count_of_those_written(pieces: list[str]) -> None:
    number = sum(piece.isalpha() for piece in pieces)
    if number:
        assert said(" ".join(pieces), {"kind": "words", "count": number}).score == 1.0
    assert said(" ".join(pieces), {"kind": "words", "count": number + 1}).score == 0.0
