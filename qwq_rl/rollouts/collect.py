"""One round of rollouts: draw prompts, sample, score, and sample new prompts for groups that teach nothing.

A group whose rewards are all equal has advantage 0 and teaches nothing, so more prompts of its domain are drawn:
dynamic sampling as in DAPO (arXiv 2503.14476, 3.2). The choice of groups depends only on their places, never on which
group was finished first, so it can be repeated.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate.utils import gather_object

from qwq_rl.data.chat import read_response, render_prompt
from qwq_rl.inference.sampler import Completion, Sampler, SamplingRequest
from qwq_rl.rollouts.rollout import Rollout, Sampled, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qwq_rl.config.stages import RlRecipe
    from qwq_rl.data.prompt_source import Prompt, PromptSource
    from qwq_rl.data.row import Row
    from qwq_rl.rollouts.scoring import PendingScores, RoundScorer
    from qwq_rl.rollouts.verdict_log import Counts

PART = 512
"""Responses that a process samples before it passes them on to the scorer. With fewer, sampling would be too slow."""


class GroupOutcome(NamedTuple):
    """The result of a group, known to every process."""

    place: int
    """The group's place in the round."""
    row: Row
    rewards: tuple[float | None, ...]
    """One per sample; None where it could not be judged."""

    @property
    def domain(self) -> str:
        """The domain of its row."""
        return str(self.row["domain"])


@dataclass(frozen=True)
class Round:
    """The result of a round."""

    rollouts: list[Rollout]
    """This process's rollouts to train on, group by group in the order of places."""
    outcomes: list[GroupOutcome]
    """The groups to train on, of all processes, in the order of places."""
    sampled: int
    """Number of groups sampled by all processes; larger than the number kept where some were replaced."""
    seconds: dict[str, float]
    counts: list[Counts]
    """The counts of each verifier call of this process."""

    @property
    def total(self) -> int:
        """Number of rollouts to train on, of all processes."""
        return sum(len(outcome.rewards) for outcome in self.outcomes)

    def places(self) -> list[int]:
        """The index of each of `rollouts` among those of all processes, group by group in the order of places."""
        first, rollouts_before = {}, 0
        for outcome in self.outcomes:
            first[outcome.place] = rollouts_before
            rollouts_before += len(outcome.rewards)
        return [first[rollout.group] + rollout.sample for rollout in self.rollouts]


class Collector:
    """Collects rounds. Every process takes part, and all of them get the results of all groups."""

    def __init__(
        self,
        recipe: RlRecipe,
        source: PromptSource,
        sampler: Sampler,
        scorer: RoundScorer,
        tokenizer: PreTrainedTokenizerBase,
        process: tuple[int, int],
    ) -> None:
        """`process`: the rank of this process and the number of processes."""
        self.recipe, self.source, self.scorer = recipe, source, scorer
        self._sampler, self._tokenizer = sampler, tokenizer
        self._rank, self._world = process

    def collect(self, update: int, meanwhile: Callable[[Sequence[Sampled]], None]) -> Round:
        """Collect the round whose first update is `update`, counted from 1.

        `meanwhile` is called with the samples while they are scored, equally often on every process.
        """
        settings = self.recipe.rollout
        prompts = self.source.draw(update, settings.prompts)
        rows = {prompt.place: prompt.row for prompt in prompts}
        # Each domain keeps its share of the round, however many of its groups turn out to be useful.
        quota = Counter(str(prompt.row["domain"]) for prompt in prompts)
        rollouts: list[Rollout] = []
        outcomes: list[GroupOutcome] = []
        seconds = {"generate": 0.0, "score": 0.0}
        counts: list[Counts] = []
        for attempt in range(1 + settings.refill):
            scored, call_counts = self._sample_and_score(prompts, update, meanwhile, seconds)
            rollouts += scored
            counts += call_counts
            # Every process gets the rewards of all groups, so all of them draw the same new prompts.
            rewards_of = _gathered(scored, settings.generations)
            outcomes += [GroupOutcome(place, rows[place], rewards) for place, rewards in rewards_of]
            missing = lacking(quota, [(outcome.domain, useful(outcome.rewards)) for outcome in outcomes])
            if not missing or attempt == settings.refill:
                break
            prompts = self.source.refill(missing)
            rows |= {prompt.place: prompt.row for prompt in prompts}
        outcomes.sort(key=lambda outcome: outcome.place)
        # Dropped groups say as much about the difficulty of their prompts as those that are kept.
        self.source.learn([(group.row, _success(group.rewards)) for group in outcomes if _judged(group.rewards)])
        kept = set(choose([(group.place, group.domain, useful(group.rewards)) for group in outcomes], quota))
        return Round(
            sorted(
                (rollout for rollout in rollouts if rollout.group in kept),
                key=lambda rollout: (rollout.group, rollout.sample),
            ),
            [outcome for outcome in outcomes if outcome.place in kept],
            len(outcomes),
            seconds,
            counts,
        )

    def _sample_and_score(
        self,
        prompts: Sequence[Prompt],
        update: int,
        meanwhile: Callable[[Sequence[Sampled]], None],
        seconds: dict[str, float],
    ) -> tuple[list[Rollout], list[Counts]]:
        """Sample and score this process's share of the prompts. One part is scored while the next one is sampled."""
        own = prompts[self._rank :: self._world]
        size = max(1, PART // self.recipe.rollout.generations)
        parts = max(
            1, -(-len(prompts) // (size * self._world))
        )  # the same number in every process: sampling is collective
        pending: list[PendingScores] = []
        with ThreadPoolExecutor(1, "verifiers") as thread:
            for part in range(parts):
                started = time.monotonic()
                sampled = self._sample(own[part * size : (part + 1) * size], update)
                seconds["generate"] += time.monotonic() - started
                pending.append(self.scorer.begin(sampled, update, thread))
            meanwhile([rollout for part in pending for rollout in part.sampled])
            started = time.monotonic()
            finished = [part.wait() for part in pending]
            seconds["score"] += time.monotonic() - started
        rollouts = [rollout for scored, _ in finished for rollout in scored]
        return rollouts, [count for _, counts in finished for count in counts]

    def _sample(self, prompts: Sequence[Prompt], update: int) -> list[Sampled]:
        settings = self.recipe.rollout
        texts = [render_prompt(self._tokenizer, prompt.row) for prompt in prompts]
        # The chat template has already added all special tokens.
        prompt_ids = [list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        growth = settings.lengthen
        max_tokens = length_limit(
            update, settings.max_tokens, growth.start if growth else None, growth.over if growth else 0
        )
        request = SamplingRequest(
            prompt_ids,
            [prompt.place for prompt in prompts],
            settings.generations,
            max_tokens,
            settings.temperature,
            # The update is part of the seed, so that a prompt gets other noise when it is drawn again.
            self.recipe.seed * 1_000_003 + update - 1,
        )
        return [
            self._sampled(prompt, texts[index], prompt_ids[index], completion, sample, update)
            for index, (prompt, group) in enumerate(zip(prompts, self._sampler(request), strict=True))
            for sample, completion in enumerate(group)
        ]

    def _sampled(
        self, prompt: Prompt, text: str, ids: Sequence[int], completion: Completion, sample: int, update: int
    ) -> Sampled:
        response = read_response(self._tokenizer, text, completion.token_ids, completion.finish)
        segment = Segment("model", response.text, response.token_ids, completion.logprobs)
        return Sampled(prompt.row, text, ids, (segment,), response, prompt.place, sample, update)


def _gathered(rollouts: Sequence[Rollout], generations: int) -> list[tuple[int, tuple[float | None, ...]]]:
    """Place and rewards of each group of all processes. `rollouts` are those of this process, group after group."""
    own = [
        (group[0].group, tuple(rollout.scored.reward for rollout in group))
        for group in (rollouts[start : start + generations] for start in range(0, len(rollouts), generations))
    ]
    all_groups: list[Any] = gather_object(own)
    return all_groups


def _judged(rewards: Sequence[float | None]) -> list[float]:
    return [reward for reward in rewards if reward is not None]


def _success(rewards: Sequence[float | None]) -> float:
    judged = _judged(rewards)
    return math.fsum(judged) / len(judged)


def useful(rewards: Sequence[float | None]) -> bool:
    """Whether two rewards of a group differ, among those that could be judged (neither None nor nan)."""
    return len({reward for reward in rewards if reward is not None and not math.isnan(reward)}) > 1


def lacking(quota: Mapping[str, int], groups: Sequence[tuple[str, bool]]) -> dict[str, int]:
    """For each domain the number of useful groups missing to its quota; a domain that has enough is left out.

    `groups` are those of the round so far: (domain, whether useful).
    """
    useful_count = Counter(domain for domain, teaches in groups if teaches)
    return {domain: target - useful_count[domain] for domain, target in quota.items() if target > useful_count[domain]}


def choose(groups: Sequence[tuple[int, str, bool]], quota: Mapping[str, int]) -> list[int]:
    """The places of the groups to train on, ascending. `groups` are (place, domain, whether useful).

    Each domain fills its quota with its useful groups in order of place, then with its useless ones in order of place,
    so the size of a round does not depend on how many were useful. It gets fewer only where it has fewer groups.
    """
    left = Counter(quota)
    chosen = []
    for place, domain, _ in sorted(groups, key=lambda group: (not group[2], group[0])):
        if left[domain] > 0:
            left[domain] -= 1
            chosen.append(place)
    return sorted(chosen)


def length_limit(update: int, max_tokens: int, start: int | None, over: int) -> int:
    """The largest number of tokens of a response in `update`, counted from 1.

    It grows linearly from `start` in update 1 to `max_tokens` in update `over` + 1, rounded down, and then stays there.
    It is always `max_tokens` where `start` is None or `over` is 0. Raises ValueError where `update` or `start` is below
    1, `over` below 0, or `start` above `max_tokens`.
    """
    if update < 1 or over < 0:
        raise ValueError(f"update is {update}, over is {over}: updates count from 1, and over is not negative")
    if start is None:
        return max_tokens
    if not 1 <= start <= max_tokens:
        raise ValueError(f"the limit starts at {start}; it must lie between 1 and max_tokens, {max_tokens}")
    done = update - 1
    return max_tokens if done >= over else start + (max_tokens - start) * done // over
