"""Reward functions written for TRL's GRPOTrainer, `f(completions, **columns) -> list[float]`, used as verifiers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from qwq_rl.verifiers.contract import Problem, Response, Verdict
from qwq_rl.verifiers.verdicts import fault, shown

Item = tuple[Problem, Response]
GIVEN = {"prompts", "completions", "completion_ids", "log_extra", "log_metric", "trainer_state"}
"""What every reward function may take besides the columns of the rows."""


def adapt(function: Callable[..., Any]) -> TrlReward:
    """Wrap a TRL reward function; plain and async ones alike."""
    return TrlReward(function)


class TrlReward:
    """A verifier that hands a whole batch to a TRL reward function.

    The function gets what TRL gives it: `prompts`, `completions` (message lists where the prompt is one),
    `completion_ids`, and every column of the rows that it names or takes by `**kwargs`. What it logs by `log_extra`
    and `log_metric` is dropped, and `trainer_state` is None: a verdict must not depend on the step. Its None means
    "does not apply" in TRL; a row that names this verifier needs it, so it counts as a fault here.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}
        self._needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}

    async def __call__(self, problem: Problem, response: Response) -> Verdict:
        """Judge one response."""
        return (await self.batch([(problem, response)]))[0]

    async def batch(self, items: Sequence[Item]) -> list[Verdict]:
        """Judge `items` in one call of the reward function."""
        lacking = [self._lacking(problem) for problem, _ in items]
        able = [item for item, column in zip(items, lacking, strict=True) if column is None]
        said = iter(await self._asked(able) if able else [])
        return [
            next(said)
            if column is None
            else fault(f"the reward function needs the column `{column}`, which the row lacks")
            for column in lacking
        ]

    async def _asked(self, items: Sequence[Item]) -> list[Verdict]:
        rewards = self._function(**self._arguments(items))
        rewards = await rewards if inspect.isawaitable(rewards) else rewards
        if len(rewards) != len(items):
            raise ValueError(f"the reward function returned {len(rewards)} rewards for {len(items)} completions")
        return [_verdict(reward) for reward in rewards]

    def _lacking(self, problem: Problem) -> str | None:
        """The first column that the function needs and the row lacks."""
        if "prompts" in self._needed and "prompt" not in problem:
            return "prompt"
        return min(self._needed - set(problem) - GIVEN, default=None)

    def _arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        shared = set.intersection(*(set(problem) for problem, _ in items)) - {"prompt", *GIVEN}
        columns: dict[str, Any] = {name: [problem[name] for problem, _ in items] for name in sorted(shared)}
        if all("prompt" in problem for problem, _ in items):  # rows that are verified alone may have none
            columns["prompts"] = [problem["prompt"] for problem, _ in items]
        columns["completions"] = [_completion(problem, response) for problem, response in items]
        columns["completion_ids"] = [list(response.token_ids) for _, response in items]
        columns |= {"log_extra": _drop, "log_metric": _drop, "trainer_state": None}
        return {name: value for name, value in columns.items() if self._takes_all or name in self._names}


def _completion(problem: Problem, response: Response) -> str | list[dict[str, Any]]:
    """The completion as TRL hands it over: text for a text prompt or none, else the messages the model wrote."""
    messages = [dict(message) for message in response.messages] or [{"role": "assistant", "content": response.text}]
    return str(messages[-1]["content"]) if isinstance(problem.get("prompt", ""), str) else messages


def _drop(name: str, value: Any) -> None:
    """What TRL would write to its own log."""


def _verdict(reward: Any) -> Verdict:
    if reward is None:
        return fault("the reward function returned None for this completion")
    try:
        score = float(reward)
    except (TypeError, ValueError):
        return fault(f"the reward function returned {shown(repr(reward))} for this completion, not a number")
    return Verdict(score, "scored", f"the reward function returned {score:g}")
