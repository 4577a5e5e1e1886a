"""From scores, gates, a preference and penalties to one bounded reward. Pure; standard library only.

    R = gate * v * ((1 - w) + w * q), then R = max(0, R + p)

with v the verified score, q the within-group win rate by the reward model, w its weight and p <= 0 the penalties. With
v in {0, 1} no failing response ever outranks a passing one, whatever w, q and p are. An open row, which only the reward
model judges, is the case v = 1, w = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwq_rl.verifiers import Verdict


def win_rates(scores: Sequence[float | None], tau: float) -> list[float | None]:
    """How often each response of one group beats the others by the Bradley-Terry model: q_i in [0, 1].

    q_i = mean over j != i of sigmoid((s_i - s_j) / tau); it uses only differences of raw scores, all that a reward
    model trained on pairs identifies, and averages 1/2 over the group. Missing and not finite scores take no part and
    get None, and so does one that is left alone. `tau` > 0 is in units of the scores; raises ValueError.
    """
    if not tau > 0:
        raise ValueError(f"tau must be above 0, not {tau}")
    known = {index: score for index, score in enumerate(scores) if score is not None and math.isfinite(score)}
    rates: list[float | None] = [None] * len(scores)
    for index, score in known.items() if len(known) > 1 else ():
        wins = [_sigmoid((score - other) / tau) for rival, other in known.items() if rival != index]
        rates[index] = sum(wins) / len(wins)
    return rates


def compose(
    score: float | None,
    gates_hold: bool | None,
    preference: float | None,
    weight: float,
    penalties: Sequence[float | None] = (),
) -> float | None:
    """One reward in [0, 1], or None where something that decides it is None (could not be judged).

    `score` and `preference` lie in [0, 1], `weight` in [0, 1], each penalty in [-1, 0]; raises ValueError. What cannot
    change the reward is not needed: nothing beyond a gate that fails, no preference where the weight or the score is 0.
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
    """Stable for any finite x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True)
class Scored:
    """What one response got."""

    score: float | None
    """The lowest verdict of role `score`, 0..1; None on open rows, and where one could not be judged."""
    reward: float | None
    """0..1; None: could not be judged, so it takes no part in learning."""
    verdicts: Mapping[str, Verdict]
    """By verifier name, the domain's rules last; a name that is asked again gets `#2` and so on."""
    gates: Mapping[str, bool]
    """The recipe's gates and the checks of role `gate`, as far as they could be judged."""
    preference: float | None
    """The within-group win rate q, where a reward model took part."""


def verdict_lines(verdicts: Mapping[str, Verdict]) -> dict[str, dict[str, Any]]:
    """Verdicts by name as JSON objects, for what is recorded of a response."""
    # dataclasses.asdict copies every value deeply, which took longer than all else that is done to record a round.
    return {name: {**vars(verdict), "metrics": dict(verdict.metrics)} for name, verdict in verdicts.items()}
