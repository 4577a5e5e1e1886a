"""Which groups of a round train, and how many more are needed: dynamic sampling as in DAPO (arXiv 2503.14476, 3.2).

A group whose rewards are all the same has no advantage and teaches nothing, so more prompts of its domain are drawn.
Everything here looks at places, never at arrival: the choice is the same however fast which group came back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan


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
