"""One round of rollouts: draw prompts, sample, score, and sample again for groups that teach nothing."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from qwq_rl.generation import Completion
from qwq_rl.prompts import read_response, render_prompt
from qwq_rl.recipes_stages import RlRecipe
from qwq_rl.rows import Row
from qwq_rl.scoring import Scored, Scorer
from qwq_rl.trainer.journal import Counts, Journal, Key, keys_of
from qwq_rl.trainer.lengths import length_limit
from qwq_rl.trainer.preference import Preference
from qwq_rl.trainer.prompts import Drawn, PromptSource
from qwq_rl.trainer.refill import choose, lacking, useful
from qwq_rl.trainer.rollouts import Rollout, Segment
from qwq_rl.trainer.sampling import Order, Sampler
from qwq_rl.verifiers import Response

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
        scorer: Scorer,
        preference: Preference | None,
        tokenizer: PreTrainedTokenizerBase,
        journal: Journal,
        process: tuple[int, int],
    ) -> None:
        """`process`: the rank of this process, and how many there are."""
        self.recipe, self.source, self.scorer, self.journal = recipe, source, scorer, journal
        self._sampler, self._preference, self._tokenizer = sampler, preference, tokenizer
        self._rank, self._world = process

    def collect(self, update: int) -> Round:
        """The round that `update`, counted from 1, is the first to train on."""
        shape = self.recipe.rollout
        drawn = self.source.draw(update, shape.prompts)
        rows = {one.place: one.row for one in drawn}
        quota = Counter(str(one.row["domain"]) for one in drawn)
        rollouts: list[Rollout] = []
        outcomes: list[Outcome] = []
        seconds = {"generate": 0.0, "score": 0.0}
        counts: list[Counts] = []
        for attempt in range(1 + shape.refill):
            found = self._sample(drawn[self._rank :: self._world], update, seconds, counts)
            rollouts += found
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

    def _sample(
        self, drawn: Sequence[Drawn], update: int, seconds: dict[str, float], counts: list[Counts]
    ) -> list[Rollout]:
        started = time.monotonic()
        shape = self.recipe.rollout
        prompts = [render_prompt(self._tokenizer, one.row) for one in drawn]
        ids = [list(self._tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        growth = shape.lengthen
        limit = length_limit(update, shape.max_tokens, growth.start if growth else None, growth.over if growth else 0)
        groups = self._sampler(
            Order(
                ids,
                [one.place for one in drawn],
                shape.generations,
                limit,
                shape.temperature,
                self.recipe.seed * 1_000_003 + update - 1,
            )
        )
        sampled = time.monotonic()
        found = self._score(drawn, prompts, ids, groups, update, counts)
        seconds["generate"] += sampled - started
        seconds["score"] += time.monotonic() - sampled
        return found

    def _score(
        self,
        drawn: Sequence[Drawn],
        prompts: Sequence[str],
        ids: Sequence[Sequence[int]],
        groups: Sequence[Sequence[Completion]],
        update: int,
        counts: list[Counts],
    ) -> list[Rollout]:
        responses = [
            [read_response(self._tokenizer, prompt, one.token_ids, one.finish) for one in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        items = [(one.row, response) for one, group in zip(drawn, responses, strict=True) for response in group]
        generations = self.recipe.rollout.generations
        keys = [
            key
            for one, group in zip(drawn, responses, strict=True)
            for key in keys_of(update, one.place, one.row, [response.token_ids for response in group])
        ]
        scored = self._judged(items, keys, update, counts)
        return [
            Rollout(
                one.row,
                prompts[at],
                ids[at],
                (Segment("model", response.text, response.token_ids, groups[at][sample].logprobs),),
                response,
                scored[at * generations + sample],
                one.place,
                sample,
                update,
            )
            for at, one in enumerate(drawn)
            for sample, response in enumerate(responses[at])
        ]

    def _judged(
        self, items: Sequence[tuple[Row, Response]], keys: Sequence[Key], update: int, counts: list[Counts]
    ) -> list[Scored]:
        """Scores and rewards: what an earlier process wrote down of an item, where it did, and new ones of the rest.

        Preferences are worked out in any case: they come out the same, unless the scale was measured anew.
        """
        preferences: Sequence[float | None] = [None] * len(items)
        if self._preference is not None:
            wanted = [self._wants_preference(row) for row, _ in items]
            preferences = self._preference.win_rates(items, self.recipe.rollout.generations, wanted)
        known = [self.journal.replay(key) for key in keys]
        found = {
            at: one
            for at, (one, now) in enumerate(zip(known, preferences, strict=True))
            if one is not None and one.preference == now
        }
        counts += self.journal.counts(keys[at] for at in found)
        rest = [at for at in range(len(items)) if at not in found]
        if rest:
            scored = self.scorer.score([items[at] for at in rest], [preferences[at] for at in rest])
            counts.append(self.scorer.counts)
            self.journal.write(update, zip([keys[at] for at in rest], scored, strict=True), self.scorer.counts)
            found |= zip(rest, scored, strict=True)
        return [found[at] for at in range(len(items))]

    def _wants_preference(self, row: Row) -> bool:
        is_open = not any(check.role == "score" for check, _ in self.scorer.checks(row))
        return is_open or self.recipe.domains[row["domain"]].reward_model > 0


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
