"""One round of rollouts: draw prompts, sample, score, and sample again for groups that teach nothing."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isnan
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from qwq_rl.config.stages import RlRecipe
from qwq_rl.data.chat import read_response, render_prompt
from qwq_rl.data.prompt_source import Prompt, PromptSource
from qwq_rl.data.sources import Row
from qwq_rl.inference import Completion
from qwq_rl.inference.sampler import Sampler, SamplingRequest
from qwq_rl.rollouts.rollout import Rollout, Sampled, Segment
from qwq_rl.rollouts.scoring import PendingScores, RoundScorer
from qwq_rl.rollouts.verdict_log import Counts

PART = 512
"""Responses that are sampled before the first of them are scored; fewer would cost the sampler more than is gained."""

Outcome = tuple[int, Row, tuple[float | None, ...]]
"""A group as every process knows it: its place in the round, its row, and its rewards by sample."""


@dataclass(frozen=True)
class Round:
    """What a round came to."""

    rollouts: list[Rollout]
    """Those of this process that are trained on, group by group in the order of places."""
    outcomes: list[Outcome]
    """The groups that are trained on, of all processes, in the order of places."""
    sampled: int
    """Groups that were sampled, of all processes; more than are kept where some were replaced."""
    seconds: dict[str, float]
    counts: list[Counts]
    """What running the verifiers came to in this process, call by call."""

    @property
    def total(self) -> int:
        """Rollouts that are trained on, of all processes."""
        return sum(len(rewards) for _, _, rewards in self.outcomes)

    def places(self) -> list[int]:
        """Where each of `rollouts` stands among those of all processes, group by group in the order of places."""
        first, before = {}, 0
        for place, _, rewards in self.outcomes:
            first[place] = before
            before += len(rewards)
        return [first[one.group] + one.sample for one in self.rollouts]


class Collector:
    """Collects rounds; every process takes part, and all know what all groups came to."""

    def __init__(
        self,
        recipe: RlRecipe,
        source: PromptSource,
        sampler: Sampler,
        judge: RoundScorer,
        tokenizer: PreTrainedTokenizerBase,
        process: tuple[int, int],
    ) -> None:
        """`process`: the rank of this process, and how many there are."""
        self.recipe, self.source, self.judge = recipe, source, judge
        self._sampler, self._tokenizer = sampler, tokenizer
        self._rank, self._world = process

    def collect(self, update: int, meanwhile: Callable[[Sequence[Sampled]], None]) -> Round:
        """The round that `update`, counted from 1, is the first to train on.

        `meanwhile` is told what was sampled while that is scored, on every process as often as on any other.
        """
        shape = self.recipe.rollout
        drawn = self.source.draw(update, shape.prompts)
        rows = {one.place: one.row for one in drawn}
        quota = Counter(str(one.row["domain"]) for one in drawn)
        rollouts: list[Rollout] = []
        outcomes: list[Outcome] = []
        seconds = {"generate": 0.0, "score": 0.0}
        counts: list[Counts] = []
        for attempt in range(1 + shape.refill):
            found, counted = self._sample_and_score(drawn, update, meanwhile, seconds)
            rollouts += found
            counts += counted
            outcomes += [(place, rows[place], rewards) for place, rewards in _gathered(found, shape.generations)]
            missing = lacking(quota, [(str(row["domain"]), useful(rewards)) for _, row, rewards in outcomes])
            if not missing or attempt == shape.refill:
                break
            drawn = self.source.refill(missing)
            rows |= {one.place: one.row for one in drawn}
        outcomes.sort(key=lambda outcome: outcome[0])
        self.source.learn([(row, _success(rewards)) for _, row, rewards in outcomes if _known(rewards)])
        kept = set(choose([(place, str(row["domain"]), useful(rewards)) for place, row, rewards in outcomes], quota))
        return Round(
            sorted((one for one in rollouts if one.group in kept), key=lambda one: (one.group, one.sample)),
            [outcome for outcome in outcomes if outcome[0] in kept],
            len(outcomes),
            seconds,
            counts,
        )

    def _sample_and_score(
        self,
        drawn: Sequence[Prompt],
        update: int,
        meanwhile: Callable[[Sequence[Sampled]], None],
        seconds: dict[str, float],
    ) -> tuple[list[Rollout], list[Counts]]:
        """This process's share of the prompts, part by part: one is scored while the next is sampled."""
        own = drawn[self._rank :: self._world]
        size = max(1, PART // self.recipe.rollout.generations)
        parts = max(1, -(-len(drawn) // (size * self._world)))  # as many in every process
        pending: list[PendingScores] = []
        with ThreadPoolExecutor(1, "verifiers") as thread:
            for part in range(parts):
                started = time.monotonic()
                samples = self._sample(own[part * size : (part + 1) * size], update)
                seconds["generate"] += time.monotonic() - started
                pending.append(self.judge.begin(samples, update, thread))
            meanwhile([one for part in pending for one in part.samples])
            started = time.monotonic()
            finished = [part.wait() for part in pending]
            seconds["score"] += time.monotonic() - started
        return [one for found, _ in finished for one in found], [one for _, counts in finished for one in counts]

    def _sample(self, drawn: Sequence[Prompt], update: int) -> list[Sampled]:
        shape = self.recipe.rollout
        prompts = [render_prompt(self._tokenizer, one.row) for one in drawn]
        ids = [list(self._tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        growth = shape.lengthen
        limit = length_limit(update, shape.max_tokens, growth.start if growth else None, growth.over if growth else 0)
        order = SamplingRequest(
            ids,
            [one.place for one in drawn],
            shape.generations,
            limit,
            shape.temperature,
            self.recipe.seed * 1_000_003 + update - 1,
        )
        return [
            self._sampled(one, prompts[at], ids[at], completion, sample, update)
            for at, (one, group) in enumerate(zip(drawn, self._sampler(order), strict=True))
            for sample, completion in enumerate(group)
        ]

    def _sampled(
        self, drawn: Prompt, prompt: str, ids: Sequence[int], completion: Completion, sample: int, update: int
    ) -> Sampled:
        response = read_response(self._tokenizer, prompt, completion.token_ids, completion.finish)
        segment = Segment("model", response.text, response.token_ids, completion.logprobs)
        return Sampled(drawn.row, prompt, ids, (segment,), response, drawn.place, sample, update)


def _gathered(rollouts: Sequence[Rollout], generations: int) -> list[tuple[int, tuple[float | None, ...]]]:
    """Place and rewards of the groups of all processes, from the rollouts of this one."""
    own = [
        (group[0].group, tuple(one.scored.reward for one in group))
        for group in (rollouts[at : at + generations] for at in range(0, len(rollouts), generations))
    ]
    found: list[Any] = gather_object(own)
    return found


def _known(rewards: Sequence[float | None]) -> list[float]:
    return [reward for reward in rewards if reward is not None]


def _success(rewards: Sequence[float | None]) -> float:
    judged = _known(rewards)
    return math.fsum(judged) / len(judged)


def useful(rewards: Sequence[float | None]) -> bool:
    """Whether two rewards of a group differ, among those that could be judged (neither None nor nan)."""
    return len({reward for reward in rewards if reward is not None and not isnan(reward)}) > 1


def lacking(quota: Mapping[str, int], groups: Sequence[tuple[str, bool]]) -> dict[str, int]:
    """How many useful groups each domain is short of its quota; a domain that has enough is left out.

    `groups` are those of the round so far: domain, whether useful.
    """
    have = Counter(domain for domain, teaches in groups if teaches)
    return {domain: due - have[domain] for domain, due in quota.items() if due > have[domain]}


def choose(groups: Sequence[tuple[int, str, bool]], quota: Mapping[str, int]) -> list[int]:
    """The places, ascending, of the groups that train, out of (place, domain, whether useful).

    Each domain fills its quota with its useful groups in order of place, then with its useless ones in order of place,
    so that the size of a round does not depend on how many were found; it gets fewer only where it has fewer groups.
    """
    left = Counter(quota)
    chosen = []
    for place, domain, _ in sorted(groups, key=lambda group: (not group[2], group[0])):
        if left[domain] > 0:
            left[domain] -= 1
            chosen.append(place)
    return sorted(chosen)


def length_limit(update: int, max_tokens: int, start: int | None, over: int) -> int:
    """The longest response, in tokens, that is sampled in `update`, counted from 1.

    It grows linearly from `start` in update 1 to `max_tokens` in update `over` + 1, where it stays, rounded down; it is
    `max_tokens` throughout where `start` is None or `over` is 0. Raises ValueError: `update` or `start` is below 1,
    `over` below 0, or `start` above `max_tokens`.
    """
    if update < 1 or over < 0:
        raise ValueError(f"update is {update}, over is {over}: updates count from 1, and over is not negative")
    if start is None:
        return max_tokens
    if not 1 <= start <= max_tokens:
        raise ValueError(f"the limit starts at {start}; it must lie between 1 and max_tokens, {max_tokens}")
    done = update - 1
    return max_tokens if done >= over else start + (max_tokens - start) * done // over
