"""How much a prompt has to teach: p (1 - p), with p the chance that the policy solves it.

That is the variance of a 0/1 reward, and the mean squared advantage of a group. Policy gradients of a prompt vanish
with it, and expected improvement grows with it: "sampling for learnability" (SFL, Rutherford et al., arXiv 2408.15099),
carried over to language models by LILO (Foster et al., arXiv 2502.12272).
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLOOR = 0.02
"""The least weight: a prompt that was always or never solved counts as one that is solved once in fifty.

So it comes a twelfth as often as one that is solved half the time: rarely, but it does come back to be tried again.
"""
SLOWEST = 0.05
"""The least step of a family's moving mean: about the last twenty prompts count."""


def weights(chances: np.ndarray) -> np.ndarray:
    """max(FLOOR, p (1 - p)) for each p of `chances`."""
    return np.maximum(FLOOR, chances * (1 - chances))


def weighted_order(weights: np.ndarray, noise: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` indices one after the other without replacement, each in proportion to its weight among those left.

    `weights` (rows,) positive, `noise` (rows,) uniform in (0, 1). Index i comes at the time -log(noise_i) / weight_i,
    an exponential variable of rate weight_i (Efraimidis and Spirakis, 2006); a tie goes to the lower index.
    """
    times = -np.log(noise) / weights
    count = min(count, len(times))
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    latest = np.partition(times, count - 1)[count - 1]
    early = np.flatnonzero(times <= latest)
    return early[np.argsort(times[early], kind="stable")][:count]


class Successes:
    """What became of the prompts that were tried: of each its last success and its tries, of each family a mean."""

    def __init__(self, families: np.ndarray) -> None:
        """`families` (problems,): the number of each problem's family, from 0."""
        self._families = families
        self._last = np.full(len(families), np.nan)
        self._tries = np.zeros(len(families), dtype=np.int64)
        number = int(families.max(initial=-1)) + 1
        self._means, self._outcomes = np.full(number, 0.5), np.zeros(number, dtype=np.int64)

    def learn(self, problem: int, success: float) -> None:
        """Take in one outcome. A family's mean begins as a plain mean with one outcome of 0.5 put in before all."""
        self._last[problem] = success
        self._tries[problem] += 1
        family = self._families[problem]
        self._outcomes[family] += 1
        step = max(SLOWEST, 1 / (self._outcomes[family] + 1))
        self._means[family] += step * (success - self._means[family])

    def chances(self, problems: np.ndarray) -> np.ndarray:
        """The chance of success of each: its last success if it was tried, else its family's mean, at first 0.5."""
        last = self._last[problems]
        return np.where(np.isnan(last), self._means[self._families[problems]], last)

    def state_dict(self) -> dict[str, Any]:
        """Problems and families that have an outcome, column by column: JSON."""
        tried, seen = np.flatnonzero(self._tries), np.flatnonzero(self._outcomes)
        return {
            "problems": tried.tolist(),
            "last": self._last[tried].tolist(),
            "tries": self._tries[tried].tolist(),
            "families": seen.tolist(),
            "means": self._means[seen].tolist(),
            "outcomes": self._outcomes[seen].tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, and from nothing else."""
        self._last[:], self._tries[:], self._means[:], self._outcomes[:] = np.nan, 0, 0.5, 0
        self._last[state["problems"]], self._tries[state["problems"]] = state["last"], state["tries"]
        self._means[state["families"]], self._outcomes[state["families"]] = state["means"], state["outcomes"]
