"""What a round without any reward is put down to."""

from __future__ import annotations

from typing import Any

import pytest

from qwq_rl.config.blocks import Domain, DomainCheck
from qwq_rl.data.chat import opens_thinking, split_thinking
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.rollouts.rollout import Rollout, Segment, rollout_line
from qwq_rl.training.zero_reward_diagnosis import explain_zero_rewards
from qwq_rl.verifiers import Response

Line = dict[str, Any]
ROWS = {f"sum-{n}": {"id": f"sum-{n}", "domain": "math", "verifier": "math", "reference": f"{n + 2}"} for n in range(4)}
OPEN_PROMPT, PLAIN_PROMPT = "user: 2 + 2?\nassistant: <think>\n", "user: 2 + 2?\nassistant: "
CLOSED_PROMPT = "user: 2 + 2?\nassistant: <think>\n\n</think>\n\n"
GATES = ["think_closed", "finished", "answered"]
DOMAINS: dict[str, Any] = {"math": Domain({"math": {}})}


def lines(texts: list[str], prompt: str = OPEN_PROMPT, domains: Any = None, **rest: Any) -> list[Line]:
    """Rollout lines of responses that the real scorer judged, one a row."""
    rows = [*ROWS.values()][: len(texts)]
    responses = []
    for text in texts:
        reasoning, answer = split_thinking(text.removesuffix("<eos>"), opens_thinking(prompt))
        ids = tuple(range(len(text.split()) or 1))
        responses.append(Response(text, answer.strip(), reasoning.strip(), rest.get("finish", "stop"), (), ids))
    scored = Scorer(domains or DOMAINS, GATES).score(list(zip(rows, responses, strict=True)))
    assert {one.reward for one in scored} == {0.0}
    return [
        rollout_line(
            Rollout(row, prompt, (), (Segment("model", one.text, one.token_ids, ()),), one, at, 0, 1, scored[at]), 0.0
        )
        for at, (row, one) in enumerate(zip(rows, responses, strict=True))
    ]


def cause(found: list[Line], rows: Any = ROWS) -> str:
    return explain_zero_rewards(found, rows).rpartition("Most likely: ")[2]


THINKS = "well I add them </think> "


@pytest.mark.parametrize(
    ("found", "most_likely"),
    [
        (lines(["<eos>"] * 4), "the model ends at once"),
        (lines(["I add them again and again"] * 4, finish="length"), "raise rollout.max_tokens"),
        (lines([THINKS + r"\boxed{9} and so on and"] * 4, finish="length"), "the tokenizer's eos_token is not the one"),
        (lines(["I add them <eos>"] * 4), "the chat template opens <think> and </think> never comes"),
        (lines(["<think> I add <eos>"] * 4, PLAIN_PROMPT), "the responses open <think> and </think> never comes"),
        (lines([THINKS + "it is nine <eos>"] * 4), "hold no answer in the form that the verifier reads"),
        (lines(["it is nine <eos>"] * 4, CLOSED_PROMPT), "The chat template does not let the model think."),
        (lines([THINKS + r"\boxed{9} <eos>"] * 4), "the answers are read and are wrong"),
    ],
)
def test_the_cause_that_makes_the_others_follow_is_named(found: list[Line], most_likely: str) -> None:
    assert most_likely in cause(found)


def test_a_rule_that_takes_the_reward_of_right_answers_is_named() -> None:
    domains = {"math": Domain({"math": {}}, checks=(DomainCheck("think_format", "gate"),))}
    answers = [rf"{THINKS} once more </think> \boxed{{{n + 2}}} <eos>" for n in range(2)]

    said = cause(lines(answers, domains=domains))

    assert said.startswith("2 of 2 answers are right, and the gate think_format (2) took their reward")


def test_right_answers_that_do_not_end_are_the_length_s_fault() -> None:
    found = lines([THINKS + rf"\boxed{{{n + 2}}} and" for n in range(4)], finish="length")

    assert cause(found).startswith("the responses come to an answer and do not end")


STRICT = """
from qwq_rl.verifiers import Verdict
def verify(problem, response):
    return Verdict(0.0, "wrong", "not the same object", response.answer)
"""


def test_answers_that_are_the_reference_are_the_verifier_s_fault(tmp_path: Any) -> None:
    (tmp_path / "strict.py").write_text(STRICT)
    domains = {"math": Domain({"math": {"use": f"{tmp_path / 'strict.py'}:verify"}})}

    found = lines([f"{THINKS} {n + 2}<eos>" for n in range(4)], domains=domains)

    assert "4 of 4 answers are letter for letter the reference" in cause(found)
    assert "wrong" in cause(found, rows={})


def test_what_was_seen_is_told() -> None:
    texts = [THINKS + r"\boxed{9} <eos>"] * 2 + [THINKS + "no " * 200 + "box<eos>"] * 2

    said = explain_zero_rewards(lines(texts), ROWS).splitlines()

    assert said[0] == "What is seen in 4 responses:"
    assert said[1] == ("- 0 of 4 were cut off at rollout.max_tokens, the chat template opens <think> in 4 of 4 prompts")
    assert said[2].startswith("- verdicts: 2 wrong, 2 no_answer. Their reasons: 2 times: ")
    assert said[3] == (
        "- answers as they were read: `9`, and the reference is `2` (row sum-0); "
        "`9`, and the reference is `3` (row sum-1)"
    )
    assert said[4].startswith("- row sum-")
    assert len(said[4]) < 200
    assert said[5].startswith("Most likely: ")
    assert len(said) == 6


def test_the_example_fails_in_the_most_common_way() -> None:
    found = lines([THINKS + r"\boxed{9} <eos>", *[THINKS + "no box at all<eos>"] * 3])

    assert "- row sum-1 got: 'well I add them </think> no box at all<eos>'" in explain_zero_rewards(found, ROWS)


def test_rows_that_are_not_at_hand_leave_out_their_references() -> None:
    assert "answers as they were read" not in explain_zero_rewards(lines([THINKS + r"\boxed{9}<eos>"]), {})
