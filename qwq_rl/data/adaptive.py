"""Weights for adaptive sampling: a prompt teaches p (1 - p), with p the chance that the policy solves it.

p (1 - p) is the variance of a 0/1 reward, and the mean squared advantage of a group. The larger it is, the larger is
the expected improvement; where it is 0, the policy gradient is 0. This is "sampling for learnability" (SFL, Rutherford
et al., arXiv 2408.15099). LILO (Foster et al., arXiv 2502.12272) applies it to language models.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLOOR = 0.02
"""The least weight. A prompt that is always or never solved gets about the weight of one solved once in fifty.

It is drawn a twelfth as often as a prompt that is solved half of the time. So it is tried again, but rarely.
"""
SLOWEST = 0.05
"""The least step size of a family's moving mean: about the last twenty prompts count."""


def weights(chances: np.ndarray) -> np.ndarray:
    """Return max(FLOOR, p (1 - p)) for each p in `chances`."""
    return np.maximum(FLOOR, chances * (1 - chances))


def weighted_order(weights: np.ndarray, noise: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` indices without replacement; each draw is in proportion to the weights of the indices left.

    `weights` (rows,) is positive, `noise` (rows,) is uniform in (0, 1). Index i gets the time -log(noise_i) / weight_i,
    an exponential variable of rate weight_i. The earliest times come first (Efraimidis and Spirakis, 2006). A tie goes
    to the lower index. If there are fewer than `count` rows, all are drawn.
    """
    times = -np.log(noise) / weights
    count = min(count, len(times))
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    # Only the rows that can be drawn are sorted: a source may have far more rows than a round draws.
    latest_time = np.partition(times, count - 1)[count - 1]
    candidates = np.flatnonzero(times <= latest_time)
    return candidates[np.argsort(times[candidates], kind="stable")][:count]


class Successes:
    """The results of the prompts tried so far: each problem's last success and number of tries, each family's mean."""

    def __init__(self, families: np.ndarray) -> None:
        """Start with no results; `families` (problems,) is the number of each problem's family, from 0."""
        self._families = families
        self._last = np.full(len(families), np.nan)
        self._tries = np.zeros(len(families), dtype=np.int64)
        family_count = int(families.max(initial=-1)) + 1
        self._means, self._outcomes = np.full(family_count, 0.5), np.zeros(family_count, dtype=np.int64)

    def learn(self, problem: int, success: float) -> None:
        """Add one result. A family's mean starts as a plain mean that includes one result of 0.5."""
        self._last[problem] = success
        self._tries[problem] += 1
        family = self._families[problem]
        self._outcomes[family] += 1
        # The step stays at SLOWEST or above, so that the mean follows a policy that changes.
        step = max(SLOWEST, 1 / (self._outcomes[family] + 1))
        self._means[family] += step * (success - self._means[family])

    def chances(self, problems: np.ndarray) -> np.ndarray:
        """Return each problem's chance of success: its last success, or its family's mean (at first 0.5) if untried."""
        last_success = self._last[problems]
        return np.where(np.isnan(last_success), self._means[self._families[problems]], last_success)

    def state_dict(self) -> dict[str, Any]:
        """Return the problems and families that have a result, as JSON, one list a column."""
        tried_problems, tried_families = np.flatnonzero(self._tries), np.flatnonzero(self._outcomes)
        return {
            "problems": tried_problems.tolist(),
            "last": self._last[tried_problems].tolist(),
            "tries": self._tries[tried_problems].tolist(),
            "families": tried_families.tolist(),
            "means": self._means[tried_families].tolist(),
            "outcomes": self._outcomes[tried_families].tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace all results by those in `state`."""
        self._last[:], self._tries[:], self._means[:], self._outcomes[:] = np.nan, 0, 0.5, 0
        self._last[state["problems"]], self._tries[state["problems"]] = state["last"], state["tries"]
        self._means[state["families"]], self._outcomes[state["families"]] = state["means"], state["outcomes"]
