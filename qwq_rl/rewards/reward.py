"""The reward formula: scores, gates, preference and penalties give one reward in [0, 1]. Pure; standard library only.

    R = gate * v * ((1 - w) + w * q), then R = max(0, R + p)

Here v is the verified score, q the win rate within the group by the reward model, w the weight of q, and p <= 0 the sum
of the penalties. If v is 0 or 1, no failing response gets a higher reward than a passing one, whatever w, q and p are.
An open row, which only the reward model judges, is the case v = 1, w = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwq_rl.verifiers import Verdict


def win_rates(scores: Sequence[float | None], tau: float) -> list[float | None]:
    """Return for each response of one group how often it beats the others by the Bradley-Terry model: q_i in [0, 1].

    q_i = mean over j != i of sigmoid((s_i - s_j) / tau). Only differences of raw scores are used, because a reward
    model trained on pairs defines nothing else. The mean of q over the group is 1/2. A missing or not finite score is
    left out and gets None; a score that is left alone gets None too. `tau` is in units of the scores. Raises ValueError
    unless `tau` > 0.
    """
    if not tau > 0:
        raise ValueError(f"tau must be above 0, not {tau}")
    finite = {index: score for index, score in enumerate(scores) if score is not None and math.isfinite(score)}
    rates: list[float | None] = [None] * len(scores)
    for index, score in finite.items() if len(finite) > 1 else ():
        wins = [_sigmoid((score - rival_score) / tau) for rival, rival_score in finite.items() if rival != index]
        rates[index] = sum(wins) / len(wins)
    return rates


def compose(
    score: float | None,
    gates_hold: bool | None,
    preference: float | None,
    weight: float,
    penalties: Sequence[float | None] = (),
) -> float | None:
    """Return one reward in [0, 1], or None if a value that decides it is None (could not be judged).

    `score`, `preference` and `weight` must lie in [0, 1], each penalty in [-1, 0]; raises ValueError otherwise. A value
    that cannot change the reward may be None: everything if a gate fails, the preference if weight or score is 0.
    """
    _check(score, preference, weight, penalties)
    if gates_hold is False or score == 0:
        return 0.0
    if gates_hold is None or score is None or (weight > 0 and preference is None):
        return None
    reward = score * ((1 - weight) + weight * preference) if preference is not None and weight > 0 else score
    if reward == 0 or not penalties:
        return reward
    if any(penalty is None for penalty in penalties):
        return None
    return max(0.0, reward + sum(penalty for penalty in penalties if penalty is not None))


def _check(score: float | None, preference: float | None, weight: float, penalties: Sequence[float | None]) -> None:
    for name, value, low, high in (
        ("score", score, 0, 1),
        ("preference", preference, 0, 1),
        ("weight", weight, 0, 1),
        *(("penalty", penalty, -1, 0) for penalty in penalties),
    ):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low}, {high}], not {value}")


def _sigmoid(x: float) -> float:
    """Return the sigmoid of x, without overflow for any finite x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True)
class Scored:
    """The result of one response."""

    score: float | None
    """The lowest verdict of role `score`, 0..1. None on open rows, and if a verdict that decides it is missing."""
    reward: float | None
    """0..1. None if it could not be judged; then training leaves the response out."""
    verdicts: Mapping[str, Verdict]
    """By verifier name, the domain's rules last. A verifier that is used again gets `#2` and so on after its name."""
    gates: Mapping[str, bool]
    """The recipe's gates and the checks of role `gate`; gates that could not be judged are left out."""
    preference: float | None
    """The win rate q within the group, or None without a reward model."""


def verdict_lines(verdicts: Mapping[str, Verdict]) -> dict[str, dict[str, Any]]:
    """Return the verdicts by name as JSON objects, for the records."""
    # Not dataclasses.asdict: it copies every value deeply, and took longer than all other steps of recording a round.
    return {name: {**vars(verdict), "metrics": dict(verdict.metrics)} for name, verdict in verdicts.items()}
