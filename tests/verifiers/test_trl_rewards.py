"""Reward functions written for TRL work as verifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwq_rl.verifiers import Problem, Response, Verdict, load
from qwq_rl.verifiers.runner.judge import judge

REWARDS = """
def by_column(completions, target, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [float(text.endswith(wanted)) for text, wanted in zip(texts, target)]

def by_text(prompts, completions):
    return [float(prompt in completion) for prompt, completion in zip(prompts, completions)]

def not_for_me(completions, **kwargs):
    return [None for _ in completions]

def logging(completions, log_metric, log_extra, trainer_state=None, **kwargs):
    log_metric("seen", len(completions))
    log_extra("text", [str(one) for one in completions])
    return [1, "many", None, 0.5][:len(completions)]

class Ending:
    def __init__(self, word):
        self.word = word

    async def __call__(self, prompts, completions, **kwargs):
        return [float(text.endswith(self.word)) for text in completions]

async def slow(completions, completion_ids, **kwargs):
    return [float(len(ids) == 2) for ids in completion_ids]
"""


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(REWARDS)
    return str(tmp_path / "rewards.py")


def item(text: str, prompt: Any, **columns: Any) -> tuple[Problem, Response]:
    return {"id": "r", "prompt": prompt, **columns}, Response(text=text, answer=text, token_ids=(1, 2))


def scores(verdicts: list[Verdict]) -> list[float | None]:
    return [said.score for said in verdicts]


def test_columns_reach_the_function_as_lists(rewards: str) -> None:
    prompt = [{"role": "user", "content": "?"}]
    items = [item("so 4", prompt, target="4"), item("so 5", prompt, target="4")]
    assert scores(judge(load(f"{rewards}:by_column"), items)) == [1.0, 0.0]


def test_a_text_prompt_gives_text_completions(rewards: str) -> None:
    assert scores(judge(load(f"{rewards}:by_text"), [item("ab", "a"), item("b", "a")])) == [1.0, 0.0]


def test_a_missing_column_is_a_fault_that_names_it(rewards: str) -> None:
    said = judge(load(f"{rewards}:by_column"), [item("4", [{"role": "user", "content": "?"}])])[0]
    assert said.score is None
    assert "`target`" in said.reason


def test_a_row_without_the_column_leaves_the_others_alone(rewards: str) -> None:
    prompt = [{"role": "user", "content": "?"}]
    items = [item("so 4", prompt, target="4"), item("so 4", prompt)]
    assert scores(judge(load(f"{rewards}:by_column"), items)) == [1.0, None]


def test_what_trl_hands_over_for_logging_is_there_and_nonsense_costs_one(rewards: str) -> None:
    found = judge(load(f"{rewards}:logging"), [item(text, "a") for text in "abcd"])
    assert scores(found) == [1.0, None, None, 0.5]
    assert "'many'" in found[1].reason


def test_a_class_of_an_async_reward_function_takes_parameters(rewards: str) -> None:
    verifier = load(f"{rewards}:Ending", {"word": "b"})
    assert scores(judge(verifier, [item("ab", "?"), item("ba", "?")])) == [1.0, 0.0]


def test_none_means_not_judged(rewards: str) -> None:
    assert scores(judge(load(f"{rewards}:not_for_me"), [item("a", "a")])) == [None]


def test_an_async_function_is_awaited(rewards: str) -> None:
    assert scores(judge(load(f"{rewards}:slow"), [item("a", "a"), item("b", "b")])) == [1.0, 1.0]


def test_a_row_without_a_prompt_has_text_and_is_judged(rewards: str) -> None:
    row = {"id": "r"}, Response("so 4", "so 4", token_ids=(1, 2))
    assert scores(judge(load(f"{rewards}:slow"), [row])) == [1.0]
    said = judge(load(f"{rewards}:by_text"), [row])[0]
    assert (said.score, said.reason) == (None, "the reward function needs the column `prompt`, which the row lacks")
