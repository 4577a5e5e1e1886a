"""A well-formed thinking block, whoever opened it."""

from __future__ import annotations

from typing import Any

import pytest

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Response, Verdict, load


def said(text: str, answer: str = "4", role: str = "gate", finish: Any = "stop", **params: Any) -> Verdict:
    verdict = load("think_format", params)({"role": role}, Response(text=text, answer=answer, finish=finish))
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize("text", ["hm\n</think>\n4", "<think>\nhm\n</think>\n4", " \n<think>hm</think>4", "</think>4"])
def test_one_block_that_the_template_or_the_model_opened_passes(text: str) -> None:
    assert said(text).score == 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4", "never ends"),
        ("<think> hm 4", "is never closed"),
        ("hm </think> hm </think> 4", "2 times"),
        ("<think> <think> </think> 4", "2 times"),
        ("<think> a <think> b </think> </think> 4", "2 times"),
        ("</think> <think> 4", "after </think>"),
        ("hm </think> 4 <think>", "after </think>"),
        ("Sure! <think> hm </think> 4", "'Sure!' stands before <think>"),
    ],
)
def test_a_malformed_block_says_how(text: str, reason: str) -> None:
    verdict = said(text)
    assert (verdict.score, verdict.status) == (0.0, "wrong")
    assert reason in verdict.reason


def test_an_empty_answer_does_not_pass() -> None:
    assert said("hm </think><|im_end|>", answer="").status == "no_answer"


def test_running_out_of_tokens_is_told() -> None:
    assert "ran out of tokens" in said("hm hm", answer="", finish="length").reason


def test_as_a_penalty_it_is_minus_one_or_nothing() -> None:
    assert said("hm </think> 4", role="penalty").score == 0.0
    assert said("hm 4", role="penalty").score == -1.0
    assert said("hm </think>", answer="", role="penalty").score == -1.0


def test_other_tags() -> None:
    tags = {"open_tag": "[T]", "close_tag": "[/T]"}
    assert said("[T]hm[/T] 4", answer="[T]hm[/T] 4", **tags).score == 1.0
    assert said("[T]hm[/T] ", answer="[T]hm[/T] ", **tags).score == 0.0
    assert said("<think>hm</think> 4", **tags).score == 0.0


@pytest.mark.parametrize("tags", [{"open_tag": ""}, {"open_tag": "</think>"}, {"close_tag": "<think>x"}])
def test_tags_that_cannot_be_told_apart_are_refused(tags: dict[str, str]) -> None:
    with pytest.raises(UserError, match="tags"):
        load("think_format", tags)


def test_a_penalty_takes_as_much_as_the_recipe_says() -> None:
    assert said("a </think></think> 4", role="penalty", most=0.2).score == -0.2
    with pytest.raises(UserError, match="`most` must be a number from 0 to 1"):
        load("think_format", {"most": 2})
