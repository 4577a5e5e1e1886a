"""Estimates with intervals. Pure mathematics on scores in [0, 1]; no torch.

The samples of one prompt are not independent. The prompt is the unit that was drawn, so every interval here is
clustered by prompt. A score of None (it could not be judged) is left out of every mean.

Which interval, and why:
- One stratum (a family): the mean of the prompts' means, with a Wilson interval whose sample size is the *effective*
  one, p (1 - p) / SE^2, SE being the cluster-robust standard error (Dean and Pagano, J. Surv. Stat. Methodol. 2015).
  With one sample a prompt this is the plain Wilson interval. It stays in [0, 1]; at p = 0 or 1, where SE is 0, every
  prompt counts as one observation, so that 100 solved prompts of 100 give [0.96, 1] and never a width of zero.
- Several strata (a domain): the mean of the strata's means; the distances from each stratum's mean to its limits are
  squared, weighted and added (MOVER: Zou and Donner, Stat. Med. 2008).
- A paired difference: a t interval on the differences of the prompts' means, strata combined by their standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

Scores = Sequence[float | None]
"""The samples of one prompt."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its two-sided 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A mean paired difference: its two-sided 95 % interval and its one-sided 95 % lower bound."""

    difference: Estimate
    lower95: float
    prompts: int


def mean_interval(prompt_scores: Sequence[Scores]) -> Estimate | None:
    """The mean over prompts of each prompt's mean score, clustered by prompt; None if nothing could be judged."""
    return _wilson(_means(prompt_scores))


def stratified_interval(strata: Sequence[Sequence[Scores]]) -> Estimate | None:
    """The mean of the strata's means. A stratum is a list of prompts; one that could not be judged is left out."""
    return combined([mean_interval(prompts) for prompts in strata])


def combined(strata: Sequence[Estimate | None]) -> Estimate | None:
    """The unweighted mean of independent estimates, with limits by MOVER; None if there is no estimate."""
    known = [stratum for stratum in strata if stratum is not None]
    if not known:
        return None
    mean = math.fsum(stratum.mean for stratum in known) / len(known)
    below = math.sqrt(math.fsum((stratum.mean - stratum.low) ** 2 for stratum in known)) / len(known)
    above = math.sqrt(math.fsum((stratum.high - stratum.mean) ** 2 for stratum in known)) / len(known)
    return Estimate(mean, max(0.0, mean - below), min(1.0, mean + above))


def pass_at_k(scores: Scores, k: int) -> float | None:
    """The probability that at least one of `k` samples passes, unbiased (Chen et al., 2021, arXiv 2107.03374).

    If c of n judged samples are 1.0, it is 1 - C(n - c, k) / C(n, k). With fewer than `k` judged samples, k is their
    number. None if there is no judged sample.
    """
    judged = [score for score in scores if score is not None]
    if not judged:
        return None
    n, passed, k = len(judged), sum(score == 1.0 for score in judged), min(k, len(judged))
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def pass_at_k_interval(prompt_scores: Sequence[Scores], k: int) -> Estimate | None:
    """The mean over prompts of `pass_at_k`."""
    return mean_interval([[pass_at_k(scores, k)] for scores in prompt_scores])


def stratified_difference(
    strata: Sequence[tuple[Mapping[str, Scores], Mapping[str, Scores]]],
) -> Difference | None:
    """The mean of the strata's mean paired differences a - b. A stratum maps prompt ids to samples, for a and for b.

    If all differences within each stratum are equal, the standard error is 0. Then the bound for an event that was
    never seen is used: with n prompts the limits are t^2 / (n + t^2) away, the Wilson limit of 0 of n.
    """
    differences = [values for values in (_differences(a, b) for a, b in strata) if values]
    if not differences:
        return None
    prompts = sum(map(len, differences))
    mean = math.fsum(math.fsum(values) / len(values) for values in differences) / len(differences)
    error = math.sqrt(math.fsum(_squared_error(values) for values in differences)) / len(differences)
    # Each stratum estimates its own mean, which costs one degree of freedom.
    freedom = prompts - len(differences)
    if freedom < 1:
        return Difference(Estimate(mean, -1.0, 1.0), -1.0, prompts)

    def reach(probability: float) -> float:
        quantile = t_quantile(probability, freedom)
        return quantile * error if error > 0.0 else quantile**2 / (prompts + quantile**2)

    two_sided = Estimate(mean, max(-1.0, mean - reach(0.975)), min(1.0, mean + reach(0.975)))
    return Difference(two_sided, max(-1.0, mean - reach(0.95)), prompts)


def _means(prompt_scores: Sequence[Scores]) -> list[float]:
    """The mean of each prompt that has a judged sample."""
    judged = ([score for score in scores if score is not None] for scores in prompt_scores)
    return [math.fsum(scores) / len(scores) for scores in judged if scores]


def _differences(a: Mapping[str, Scores], b: Mapping[str, Scores]) -> list[float]:
    """The difference of the means of each prompt that is judged in both."""
    pairs = ((_means([a[prompt]]), _means([b[prompt]])) for prompt in a if prompt in b)
    return [means_a[0] - means_b[0] for means_a, means_b in pairs if means_a and means_b]


def _squared_error(values: Sequence[float]) -> float:
    """The squared standard error of the mean of independent values in [-1, 1]; 1 for a single value: it is unknown."""
    if len(values) == 1:
        return 1.0
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def _wilson(means: Sequence[float]) -> Estimate | None:
    """The Wilson interval of the prompts' means with the effective sample size (see above); None without prompts."""
    if not means:
        return None
    prompts, mean = len(means), math.fsum(means) / len(means)
    if prompts == 1:
        return Estimate(mean, 0.0, 1.0)
    squared_error, spread = _squared_error(means), mean * (1.0 - mean)
    # Every prompt counts as at least one observation; only the n - 1 of the variance could make it less. If all means
    # are equal, the standard error is 0 and each prompt counts as exactly one.
    size = max(prompts, spread / squared_error) if squared_error > 1e-12 else prompts
    squared = t_quantile(0.975, prompts - 1) ** 2
    centre = (mean + squared / (2.0 * size)) / (1.0 + squared / size)
    reach = math.sqrt(squared * (spread / size + squared / (4.0 * size**2))) / (1.0 + squared / size)
    return Estimate(mean, min(mean, max(0.0, centre - reach)), max(mean, min(1.0, centre + reach)))


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t at `probability` > 0.5 for whole degrees of `freedom` >= 1, to 1e-9."""
    # The expansion is exact enough for many degrees of freedom, and needs no search.
    if freedom > 400:
        return _t_quantile_expanded(probability, freedom)
    low, high = 0.0, 1e6
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2.0
        if _t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def _t_cdf(value: float, freedom: int) -> float:
    """P(T <= value), value >= 0: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(value, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    terms = [term] if freedom > 1 else []
    for index in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (index - 1) / index
        terms.append(term)
    two_sided = (angle + sine * math.fsum(terms)) * 2.0 / math.pi if odd else sine * math.fsum(terms)
    return 0.5 + two_sided / 2.0


def _t_quantile_expanded(probability: float, freedom: int) -> float:
    """Abramowitz and Stegun, 26.7.5: the normal quantile with corrections in powers of 1 / freedom."""
    z = NormalDist().inv_cdf(probability)
    corrections = (
        (z**3 + z) / 4.0,
        (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0,
        (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0,
    )
    return z + sum(correction / freedom**power for power, correction in enumerate(corrections, start=1))
