"""Whether a response stays in one language, by the scripts of its words."""

from __future__ import annotations

from typing import Any

import pytest

from qwq_rl.errors import UserError
from qwq_rl.verifiers import Response, Verdict, load
from qwq_rl.verifiers.builtin.language import words_by_script

ENGLISH = "First we add the two numbers and then we divide the sum by the third one. "
CHINESE = "首先我们把两个数加起来，然后再除以第三个数。"
RUSSIAN = "Сначала мы складываем два числа, потом делим сумму на третье число. "


def said(answer: str, reasoning: str = "", reference: Any = None, prompt: Any = "", **rest: Any) -> Verdict:
    role = rest.pop("role", "score")
    problem = {"reference": reference, "prompt": prompt, "role": role}
    response = Response(text=f"{reasoning}</think>{answer}", answer=answer, reasoning=reasoning)
    verdict = load("language_consistency", rest)(problem, response)
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh"), (RUSSIAN, "ru"), (ENGLISH, "de")])
def test_a_text_in_its_language_scores_one(text: str, language: str) -> None:
    assert said(text, text, reference=language).score == 1.0
    assert said(text, text, language=language).score == 1.0


def test_the_score_is_the_share_of_words() -> None:
    verdict = said("we add two numbers " * 4 + "把数加", reference="en")
    assert verdict.score == 16 / 19
    assert verdict.reason == "84% of the 19 words of the answer are Latin, 3 are Han"


def test_the_worse_of_reasoning_and_answer_counts() -> None:
    verdict = said(CHINESE, ENGLISH, reference="zh")
    assert (verdict.score, verdict.metrics) == (0.0, {"reasoning": 0.0, "answer": 1.0})


@pytest.mark.parametrize(
    ("prompt", "text", "score"),
    [
        ("How many apples are left?", CHINESE, 0.0),
        ("How many apples are left?", ENGLISH, 1.0),
        ("还剩几个苹果？", CHINESE, 1.0),
        ("还剩几个苹果？", ENGLISH, 0.0),
        ([{"role": "system", "content": ENGLISH * 3}, {"role": "user", "content": "还剩几个苹果？"}], ENGLISH, 0.0),
        ("Translate into English: 还剩几个苹果？", ENGLISH, 1.0),
        ("3 + 4 = ?", CHINESE, 1.0),
        ("りんごはいくつ残っていますか？", "りんごは三つ残っています。", 1.0),
    ],
)
def test_the_language_of_the_prompt_is_expected_where_none_is_named(prompt: Any, text: str, score: float) -> None:
    assert said(text, text, prompt=prompt).score == score


@pytest.mark.parametrize(
    "answer",
    [
        "Paris is the capital.",
        r"\boxed{42}",
        r"$x = \frac{a+b}{2}$, \(y = \sin x\), \[ \text{where } z = \log w \]",
        "```python\n" + "for number in numbers: print(number)\n" * 5 + "```",
        "https://example.org/a/long/path/of/many/words/that/are/no/prose/at/all",
        "\\begin{align} alpha &= beta \\end{align} " * 5,
        "<tool_call>" + '{"name": "find the weather of the city and tell it to me please"}' + "</tool_call>",
        "f(x) = a x + b y + c z + d w " * 5,
    ],
)
def test_short_answers_code_and_mathematics_are_not_punished(answer: str) -> None:
    assert said(answer, CHINESE, reference="zh").score == 1.0


def test_a_gate_holds_from_the_threshold_on() -> None:
    mixed = "we add two numbers " * 4 + "把数加"
    assert said(mixed, reference="en", role="gate", threshold=0.8).score == 1.0
    assert said(mixed, reference="en", role="gate", threshold=0.9).score == 0.0


def test_a_penalty_is_the_missing_share_at_most_so_much() -> None:
    assert said(CHINESE, reference="en", role="penalty", most=0.25).score == -0.25
    assert said(CHINESE, reference="zh", role="penalty", most=0.25).score == 0.0
    assert said("", CHINESE, reference="en", role="penalty").score == -1.0


def test_an_empty_answer_is_no_answer() -> None:
    assert said("", ENGLISH, reference="en").status == "no_answer"


@pytest.mark.parametrize("reference", ["xx", "english", 3, ["en"]])
def test_an_unknown_reference_is_the_row_s_fault(reference: Any) -> None:
    assert said(ENGLISH, reference=reference).status == "bad_reference"


@pytest.mark.parametrize("params", [{"language": "xx"}, {"threshold": 2}, {"most": -1}, {"least_words": 0}])
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        load("language_consistency", params)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("我们consider一下GPU", {"Han": 4, "Latin": 2}),
        ("don't x2 snake_case I", {"Latin": 1}),
        ("It costs $5 and then $6 more", {"Latin": 5}),
        ("a lone ` mark and a lone $x in words", {"Latin": 6}),
        ("ещё слово", {"Cyrillic": 2}),
        ("안녕 세계", {"Hangul": 2}),
        ("```\nan open fence hides the rest", {}),
        ("**bold words**", {"Latin": 2}),
    ],
)
def test_words_are_counted_by_script(text: str, found: dict[str, int]) -> None:
    assert dict(words_by_script(text)) == found
