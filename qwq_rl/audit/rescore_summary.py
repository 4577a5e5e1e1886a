"""What another verifier would have changed: verdicts, rewards, and which way each group would have pushed. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qwq_rl.audit.rescored import Again

Summary = dict[str, Any]


def disagrees(again: Again) -> bool:
    """Whether the score is another one; two words for one score are no disagreement."""
    old, new = again.rollout["verdicts"][again.name]["score"], again.scored.verdicts[again.name].score
    return old != new if old is None or new is None else abs(old - new) > 1e-9


def summarise(found: Sequence[Again], unfound: int, everything: Iterable[Mapping[str, Any]]) -> Summary:
    """The summary by domain (docs/contracts.md, "What rescore writes").

    `everything` are all recorded rollouts of the stages: a group may hold rollouts that were not judged again.
    """
    groups = _groups(found, everything)
    domains = {}
    for domain in sorted({again.rollout["domain"] for again in found}):
        of = [again for again in found if again.rollout["domain"] == domain]
        domains[domain] = {
            "rollouts": len(of),
            "disagree": sum(map(disagrees, of)),
            "statuses": _statuses(of),
            "score": {
                "old": _mean(again.rollout["verdicts"][again.name]["score"] for again in of),
                "new": _mean(again.scored.verdicts[again.name].score for again in of),
            },
            "reward": {
                "old": _mean(again.rollout["reward"] for again in of),
                "new": _mean(again.scored.reward for again in of),
            },
            "faults": {
                "old": sum(again.rollout["reward"] is None for again in of),
                "new": sum(again.scored.reward is None for again in of),
            },
            "groups": _compared([pair for name, pair in groups if name == domain]),
        }
    return {"rollouts": len(found), "disagree": sum(map(disagrees, found)), "unfound": unfound, "domains": domains}


def _statuses(of: Sequence[Again]) -> list[dict[str, Any]]:
    """How often which status became which, the most frequent first."""
    count = Counter(
        (again.rollout["verdicts"][again.name]["status"], again.scored.verdicts[again.name].status) for again in of
    )
    return [{"old": old, "new": new, "rollouts": number} for (old, new), number in count.most_common()]


Rewards = list[float | None]


def _groups(
    found: Sequence[Again], everything: Iterable[Mapping[str, Any]]
) -> list[tuple[str, tuple[Rewards, Rewards]]]:
    """The domain and the old and new rewards of every group that has a rollout judged again."""
    new = {(again.stage, again.rollout["id"]): again.scored.reward for again in found}
    touched = {(again.stage, again.rollout["update"], again.rollout["group"]) for again in found}
    rewards: dict[tuple[str, int, int], tuple[str, Rewards, Rewards]] = {}
    for line in everything:
        key = (line["stage"], line["update"], line["group"])
        if key in touched:
            _, before, after = rewards.setdefault(key, (line["domain"], [], []))
            before.append(line["reward"])
            after.append(new.get((line["stage"], line["id"]), line["reward"]))
    return [(domain, (before, after)) for domain, before, after in rewards.values()]


def _compared(pairs: Sequence[tuple[Rewards, Rewards]]) -> dict[str, int]:
    """How many groups would have taught something else, or nothing, or for the first time something."""
    useful = [(_teaches(before), _teaches(after)) for before, after in pairs]
    return {
        "total": len(pairs),
        "signs_changed": sum(signs(before) != signs(after) for before, after in pairs),
        "vanished": sum(before and not after for before, after in useful),
        "appeared": sum(after and not before for before, after in useful),
    }


def signs(rewards: Sequence[float | None]) -> list[int]:
    """Which way each rollout of a group is pushed: the sign of its reward minus the group's mean; 0: not at all."""
    known = [reward for reward in rewards if reward is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    return [
        0 if reward is None or abs(reward - mean) < 1e-9 else int(math.copysign(1, reward - mean)) for reward in rewards
    ]


def _teaches(rewards: Sequence[float | None]) -> bool:
    return any(signs(rewards))


def examples(found: Sequence[Again], most: int) -> Iterator[tuple[Again, int]]:
    """Disagreements worth reading, each with how many rollouts are like it: same row, answers and statuses.

    The largest differences of score first, of these what happened most often; each change of status gets its turn.
    """
    alike: dict[tuple[Any, ...], list[Again]] = {}
    for again in filter(disagrees, found):
        old, new = again.rollout["verdicts"][again.name], again.scored.verdicts[again.name]
        key = (old["status"], new.status, again.rollout["row"], old["answer"], new.answer)
        alike.setdefault(key, []).append(again)
    queues: dict[tuple[str, str], list[list[Again]]] = {}
    for key, of in sorted(alike.items(), key=lambda item: (-_gap(item[1][0]), -len(item[1]))):
        queues.setdefault((key[0], key[1]), []).append(of)
    shown = 0
    while any(queues.values()) and shown < most:
        for queue in queues.values():
            if queue and shown < most:
                of = queue.pop(0)
                shown += 1
                yield of[0], len(of)


def _gap(again: Again) -> float:
    old, new = again.rollout["verdicts"][again.name]["score"], again.scored.verdicts[again.name].score
    return 0.5 if old is None or new is None else abs(old - new)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
