"""Lets reward functions written for TRL's GRPOTrainer, `f(completions, **columns) -> list[float]`, act as verifiers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from qwq_rl.verifiers.contract import Problem, Response, Verdict
from qwq_rl.verifiers.verdicts import fault, shown

Item = tuple[Problem, Response]
GIVEN = {"prompts", "completions", "completion_ids", "log_extra", "log_metric", "trainer_state"}
"""What every reward function may take in addition to the columns of the rows."""


def adapt(function: Callable[..., Any]) -> TrlReward:
    """Wrap a TRL reward function, plain or async."""
    return TrlReward(function)


class TrlReward:
    """A verifier that passes a whole batch to a TRL reward function.

    The function gets the same arguments as in TRL: `prompts`, `completions` (lists of messages if the prompt is one),
    `completion_ids`, and every column of the rows that it names or takes by `**kwargs`. What it logs with `log_extra`
    and `log_metric` is dropped. `trainer_state` is None, because a verdict must not depend on the training step. In TRL
    a reward of None means "does not apply". Here it is a fault, because a row that names this verifier needs its
    verdict.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(param.kind is param.VAR_KEYWORD for param in parameters)
        self._names = {param.name for param in parameters}
        self._needed = {
            param.name for param in parameters if param.default is param.empty and param.kind is not param.VAR_KEYWORD
        }

    async def __call__(self, problem: Problem, response: Response) -> Verdict:
        """Judge one response."""
        return (await self.batch([(problem, response)]))[0]

    async def batch(self, items: Sequence[Item]) -> list[Verdict]:
        """Judge `items` in one call of the reward function."""
        missing = [self._missing_column(problem) for problem, _ in items]
        # Rows without a needed column would break the call for all others.
        complete = [item for item, column in zip(items, missing, strict=True) if column is None]
        verdicts = iter(await self._call(complete) if complete else [])
        return [
            next(verdicts)
            if column is None
            else fault(f"the reward function needs the column `{column}`, which the row lacks")
            for column in missing
        ]

    async def _call(self, items: Sequence[Item]) -> list[Verdict]:
        rewards = self._function(**self._arguments(items))
        rewards = await rewards if inspect.isawaitable(rewards) else rewards
        if len(rewards) != len(items):
            raise ValueError(f"the reward function returned {len(rewards)} rewards for {len(items)} completions")
        return [_verdict(reward) for reward in rewards]

    def _missing_column(self, problem: Problem) -> str | None:
        """The first column that the function needs and the row does not have; None if all are there."""
        if "prompts" in self._needed and "prompt" not in problem:
            return "prompt"
        return min(self._needed - set(problem) - GIVEN, default=None)

    def _arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        # TRL passes one list per column, so only columns that every row has can be passed.
        shared = set.intersection(*(set(problem) for problem, _ in items)) - {"prompt", *GIVEN}
        columns: dict[str, Any] = {name: [problem[name] for problem, _ in items] for name in sorted(shared)}
        if all("prompt" in problem for problem, _ in items):  # rows of `qwq-rl verify` may have no prompt
            columns["prompts"] = [problem["prompt"] for problem, _ in items]
        columns["completions"] = [_completion(problem, response) for problem, response in items]
        columns["completion_ids"] = [list(response.token_ids) for _, response in items]
        columns |= {"log_extra": _drop, "log_metric": _drop, "trainer_state": None}
        return {name: value for name, value in columns.items() if self._takes_all or name in self._names}


def _completion(problem: Problem, response: Response) -> str | list[dict[str, Any]]:
    """The completion as TRL passes it.

    It is a text if the prompt is a text or missing, else the messages that the model wrote.
    """
    messages = [dict(message) for message in response.messages] or [{"role": "assistant", "content": response.text}]
    return str(messages[-1]["content"]) if isinstance(problem.get("prompt", ""), str) else messages


def _drop(name: str, value: Any) -> None:
    """Ignore what TRL would write to its own log."""


def _verdict(reward: Any) -> Verdict:
    if reward is None:
        return fault("the reward function returned None for this completion")
    try:
        score = float(reward)
    except (TypeError, ValueError):
        return fault(f"the reward function returned {shown(repr(reward))} for this completion, not a number")
    return Verdict(score, "scored", f"the reward function returned {score:g}")
