"""Scores what was sampled in a thread of its own, beside further sampling and the reference's forward pass.

Verifiers mostly wait, for sandboxes and worker processes. What processes must do together, the scale of preferences,
is done before the thread begins: collectives of two threads could cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from qwq_rl.rollouts.rollout import Rollout, Sampled
from qwq_rl.rollouts.verdict_log import Counts, Key, VerdictLog, keys_of

if TYPE_CHECKING:
    from qwq_rl.config.stages import RlRecipe
    from qwq_rl.data.row import Row
    from qwq_rl.rewards.reward import Scored
    from qwq_rl.rewards.reward_model import Preference
    from qwq_rl.rewards.scorer import Scorer


@dataclass(frozen=True)
class PendingScores:
    """Samples whose scores are on their way."""

    sampled: Sequence[Sampled]
    replayed: dict[int, Scored]
    """Position -> what an earlier process wrote down of it."""
    counts: list[Counts]
    """What running the verifiers came to for those."""
    rest: Sequence[int]
    """The positions that are judged now."""
    judged: Future[tuple[list[Scored], Counts]] | None

    def wait(self) -> tuple[list[Rollout], list[Counts]]:
        """The rollouts, once they are scored, and what running the verifiers came to, call by call."""
        scores, counts = dict(self.replayed), list(self.counts)
        if self.judged is not None:
            scored, count = self.judged.result()
            scores |= zip(self.rest, scored, strict=True)
            counts.append(count)
        return [Rollout(**vars(sample), scored=scores[at]) for at, sample in enumerate(self.sampled)], counts


class RoundScorer:
    """Scores the samples of one process; all processes begin alike."""

    def __init__(
        self, recipe: RlRecipe, scorer: Scorer, preference: Preference | None, verdict_log: VerdictLog
    ) -> None:
        self._recipe, self._scorer, self._preference = recipe, scorer, preference
        self.verdict_log = verdict_log

    def begin(self, sampled: Sequence[Sampled], update: int, thread: Executor) -> PendingScores:
        """Start scoring whole groups; what an earlier process wrote down of a sample is not asked again.

        Preferences are worked out in any case: they come out the same, unless the scale was measured anew.
        """
        keys = [key for _, group in groupby(sampled, lambda one: one.group) for key in _keys(list(group), update)]
        preferences = self._preferences(sampled)
        logged = [self.verdict_log.replay(key) for key in keys]
        same = {
            at: scored
            for at, (scored, preference) in enumerate(zip(logged, preferences, strict=True))
            if scored is not None and scored.preference == preference
        }
        # Where only a part of a call comes again, as after rows were mended, it is judged anew: its counts would lie.
        intact = self.verdict_log.intact(keys[at] for at in same)
        replayed = {at: scored for at, scored in same.items() if keys[at] in intact}
        rest = [at for at in range(len(sampled)) if at not in replayed]

        def judge() -> tuple[list[Scored], Counts]:
            items = [(sampled[at].row, sampled[at].response) for at in rest]
            scored = list(self._scorer.score(items, [preferences[at] for at in rest]))
            counts = self._scorer.counts
            # On the disk before anything is learned from it: a resumed stage must find the verdicts that it had.
            self.verdict_log.write(update, zip([keys[at] for at in rest], scored, strict=True), counts)
            return scored, counts

        counts = list(self.verdict_log.counts(keys[at] for at in replayed))
        return PendingScores(sampled, replayed, counts, rest, thread.submit(judge) if rest else None)

    def _preferences(self, sampled: Sequence[Sampled]) -> Sequence[float | None]:
        if self._preference is None:
            return [None] * len(sampled)
        wanted = [self._wants_preference(sample.row) for sample in sampled]
        items = [(sample.row, sample.response) for sample in sampled]
        return self._preference.win_rates(items, self._recipe.rollout.generations, wanted)

    def _wants_preference(self, row: Row) -> bool:
        is_open = not any(check.role == "score" for check, _ in self._scorer.checks(row))
        return is_open or self._recipe.domains[row["domain"]].reward_model > 0


def _keys(group: Sequence[Sampled], update: int) -> list[Key]:
    return keys_of(update, group[0].group, group[0].row, [sample.response.token_ids for sample in group])
