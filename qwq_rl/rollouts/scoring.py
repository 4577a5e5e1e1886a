"""Scoring of samples in a thread, while the next ones are sampled and the reference computes its log-probabilities.

Verifiers spend most of their time waiting for sandboxes and worker processes. The scale of preferences needs all
processes together, so it is computed before the thread starts: collectives of two threads could get mixed up.
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
    """Samples that are being scored."""

    sampled: Sequence[Sampled]
    replayed: dict[int, Scored]
    """Position -> its score from the verdict log, written by an earlier process."""
    counts: list[Counts]
    """The counts of the verifier calls that gave the `replayed` scores."""
    rest: Sequence[int]
    """The positions that are being judged now."""
    judged: Future[tuple[list[Scored], Counts]] | None

    def wait(self) -> tuple[list[Rollout], list[Counts]]:
        """Wait for the scores. Returns the rollouts, and the counts of each verifier call."""
        scores, counts = dict(self.replayed), list(self.counts)
        if self.judged is not None:
            scored, count = self.judged.result()
            scores |= zip(self.rest, scored, strict=True)
            counts.append(count)
        return [
            Rollout(**vars(sample), scored=scores[position]) for position, sample in enumerate(self.sampled)
        ], counts


class RoundScorer:
    """Scores the samples of one process. All processes must call `begin` equally often."""

    def __init__(
        self, recipe: RlRecipe, scorer: Scorer, preference: Preference | None, verdict_log: VerdictLog
    ) -> None:
        self._recipe, self._scorer, self._preference = recipe, scorer, preference
        self.verdict_log = verdict_log

    def begin(self, sampled: Sequence[Sampled], update: int, thread: Executor) -> PendingScores:
        """Start scoring whole groups. Samples that the verdict log has scores for are not judged again.

        Preferences are always computed. They are the same as before, unless the scale was measured again.
        """
        keys = [key for _, group in groupby(sampled, lambda sample: sample.group) for key in _keys(list(group), update)]
        preferences = self._preferences(sampled)
        logged = [self.verdict_log.replay(key) for key in keys]
        unchanged = {
            position: scored
            for position, (scored, preference) in enumerate(zip(logged, preferences, strict=True))
            if scored is not None and scored.preference == preference
        }
        # A call of which only a part could be replayed (rows were changed) is judged again: its counts cover all of it.
        intact = self.verdict_log.intact(keys[position] for position in unchanged)
        replayed = {position: scored for position, scored in unchanged.items() if keys[position] in intact}
        rest = [position for position in range(len(sampled)) if position not in replayed]

        def judge() -> tuple[list[Scored], Counts]:
            items = [(sampled[position].row, sampled[position].response) for position in rest]
            scored = list(self._scorer.score(items, [preferences[position] for position in rest]))
            counts = self._scorer.counts
            # On disk before training uses it: a resumed stage must find the same verdicts.
            self.verdict_log.write(update, zip([keys[position] for position in rest], scored, strict=True), counts)
            return scored, counts

        counts = list(self.verdict_log.counts(keys[position] for position in replayed))
        return PendingScores(sampled, replayed, counts, rest, thread.submit(judge) if rest else None)

    def _preferences(self, sampled: Sequence[Sampled]) -> Sequence[float | None]:
        if self._preference is None:
            return [None] * len(sampled)
        wanted = [self._wants_preference(sample.row) for sample in sampled]
        items = [(sample.row, sample.response) for sample in sampled]
        return self._preference.win_rates(items, self._recipe.rollout.generations, wanted)

    def _wants_preference(self, row: Row) -> bool:
        # An open row has no verifier that scores it, so only the reward model can.
        is_open = not any(check.role == "score" for check, _ in self._scorer.checks(row))
        return is_open or self._recipe.domains[row["domain"]].reward_model > 0


def _keys(group: Sequence[Sampled], update: int) -> list[Key]:
    return keys_of(update, group[0].group, group[0].row, [sample.response.token_ids for sample in group])
