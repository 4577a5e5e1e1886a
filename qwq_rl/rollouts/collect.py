"""One round of rollouts: draw prompts, sample, score, and sample again for groups that teach nothing.

A group whose rewards are all the same has no advantage and teaches nothing, so more prompts of its domain are drawn:
dynamic sampling as in DAPO (arXiv 2503.14476, 3.2). What is chosen depends on places, never on arrival: it is the same
however fast which group came back.
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
"""Responses that are sampled before the first of them are scored; fewer would cost the sampler more than is gained."""


class GroupOutcome(NamedTuple):
    """A group as every process knows it."""

    place: int
    """In the round."""
    row: Row
    rewards: tuple[float | None, ...]
    """By sample; None where one could not be judged."""

    @property
    def domain(self) -> str:
        """The domain of its row."""
        return str(self.row["domain"])


@dataclass(frozen=True)
class Round:
    """What a round came to."""

    rollouts: list[Rollout]
    """Those of this process that are trained on, group by group in the order of places."""
    outcomes: list[GroupOutcome]
    """The groups that are trained on, of all processes, in the order of places."""
    sampled: int
    """Groups that were sampled, of all processes; more than are kept where some were replaced."""
    seconds: dict[str, float]
    counts: list[Counts]
    """What running the verifiers came to in this process, call by call."""

    @property
    def total(self) -> int:
        """Rollouts that are trained on, of all processes."""
        return sum(len(outcome.rewards) for outcome in self.outcomes)

    def places(self) -> list[int]:
        """Where each of `rollouts` stands among those of all processes, group by group in the order of places."""
        first, before = {}, 0
        for outcome in self.outcomes:
            first[outcome.place] = before
            before += len(outcome.rewards)
        return [first[rollout.group] + rollout.sample for rollout in self.rollouts]


class Collector:
    """Collects rounds; every process takes part, and all know what all groups came to."""

    def __init__(
        self,
        recipe: RlRecipe,
        source: PromptSource,
        sampler: Sampler,
        scorer: RoundScorer,
        tokenizer: PreTrainedTokenizerBase,
        process: tuple[int, int],
    ) -> None:
        """`process`: the rank of this process, and how many there are."""
        self.recipe, self.source, self.scorer = recipe, source, scorer
        self._sampler, self._tokenizer = sampler, tokenizer
        self._rank, self._world = process

    def collect(self, update: int, meanwhile: Callable[[Sequence[Sampled]], None]) -> Round:
        """The round that `update`, counted from 1, is the first to train on.

        `meanwhile` is told what was sampled while that is scored, on every process as often as on any other.
        """
        shape = self.recipe.rollout
        prompts = self.source.draw(update, shape.prompts)
        rows = {prompt.place: prompt.row for prompt in prompts}
        # Each domain keeps its share of the round, whichever of its groups turn out to teach.
        quota = Counter(str(prompt.row["domain"]) for prompt in prompts)
        rollouts: list[Rollout] = []
        outcomes: list[GroupOutcome] = []
        seconds = {"generate": 0.0, "score": 0.0}
        counts: list[Counts] = []
        for attempt in range(1 + shape.refill):
            scored, counted = self._sample_and_score(prompts, update, meanwhile, seconds)
            rollouts += scored
            counts += counted
            # All processes learn what all groups came to, so that all of them refill alike.
            rewards_of = _gathered(scored, shape.generations)
            outcomes += [GroupOutcome(place, rows[place], rewards) for place, rewards in rewards_of]
            missing = lacking(quota, [(outcome.domain, useful(outcome.rewards)) for outcome in outcomes])
            if not missing or attempt == shape.refill:
                break
            prompts = self.source.refill(missing)
            rows |= {prompt.place: prompt.row for prompt in prompts}
        outcomes.sort(key=lambda outcome: outcome.place)
        # Groups that are replaced below say as much of their prompts' difficulty as those that are kept.
        self.source.learn([(one.row, _success(one.rewards)) for one in outcomes if _known(one.rewards)])
        kept = set(choose([(one.place, one.domain, useful(one.rewards)) for one in outcomes], quota))
        return Round(
            sorted((one for one in rollouts if one.group in kept), key=lambda one: (one.group, one.sample)),
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
        """This process's share of the prompts, part by part: one is scored while the next is sampled."""
        own = prompts[self._rank :: self._world]
        size = max(1, PART // self.recipe.rollout.generations)
        parts = max(1, -(-len(prompts) // (size * self._world)))  # as many in every process
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
        shape = self.recipe.rollout
        texts = [render_prompt(self._tokenizer, prompt.row) for prompt in prompts]
        # The template has put in every special token that belongs there.
        ids = [list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        growth = shape.lengthen
        limit = length_limit(update, shape.max_tokens, growth.start if growth else None, growth.over if growth else 0)
        request = SamplingRequest(
            ids,
            [prompt.place for prompt in prompts],
            shape.generations,
            limit,
            shape.temperature,
            # Keyed by the update: the same prompt gets other noise when it comes again.
            self.recipe.seed * 1_000_003 + update - 1,
        )
        return [
            self._sampled(prompt, texts[at], ids[at], completion, sample, update)
            for at, (prompt, group) in enumerate(zip(prompts, self._sampler(request), strict=True))
            for sample, completion in enumerate(group)
        ]

    def _sampled(
        self, prompt: Prompt, text: str, ids: Sequence[int], completion: Completion, sample: int, update: int
    ) -> Sampled:
        response = read_response(self._tokenizer, text, completion.token_ids, completion.finish)
        segment = Segment("model", response.text, response.token_ids, completion.logprobs)
        return Sampled(prompt.row, text, ids, (segment,), response, prompt.place, sample, update)


def _gathered(rollouts: Sequence[Rollout], generations: int) -> list[tuple[int, tuple[float | None, ...]]]:
    """Place and rewards of the groups of all processes, from the rollouts of this one."""
    own = [
        (group[0].group, tuple(rollout.scored.reward for rollout in group))
        for group in (rollouts[at : at + generations] for at in range(0, len(rollouts), generations))
    ]
    of_all: list[Any] = gather_object(own)
    return of_all


def _known(rewards: Sequence[float | None]) -> list[float]:
    return [reward for reward in rewards if reward is not None]


def _success(rewards: Sequence[float | None]) -> float:
    judged = _known(rewards)
    return math.fsum(judged) / len(judged)


def useful(rewards: Sequence[float | None]) -> bool:
    """Whether two rewards of a group differ, among those that could be judged (neither None nor nan)."""
    return len({reward for reward in rewards if reward is not None and not math.isnan(reward)}) > 1


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
