"""From judged responses to the estimates of an evaluation (docs/contracts.md, "evaluations.jsonl"). Pure.

A family's figure is the mean over its prompts, a domain's the mean of its families' figures, so that each family weighs
the same. The general score is thus the mean of its families' pass@1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from qwq_rl.evals.intervals import (
    Difference,
    Estimate,
    combined,
    mean_interval,
    pass_at_k_interval,
    stratified_difference,
    stratified_interval,
)


@dataclass(frozen=True)
class PromptRecord:
    """The responses to one prompt, judged. The tuples hold one entry a sample; a score of None is a fault of ours."""

    id: str
    domain: str
    family: str
    prompt: str
    scores: tuple[float | None, ...]
    greedy: float | None
    """The score of the greedy response; None also where there was none."""
    tokens: tuple[int, ...]
    terse: tuple[int, ...]
    """1 where the reasoning is empty."""
    truncated: tuple[int, ...]
    """1 where the token limit ended the response."""
    response: str
    """The first sample, as decoded; `status` and `reason` are its verdict's."""
    status: str
    reason: str
    answers: tuple[str, ...] = ()
    """The final answers of the samples."""

    @property
    def area(self) -> str:
        """The family as reports name it: `domain/family`."""
        return f"{self.domain}/{self.family}"

    def line(self) -> dict[str, Any]:
        """The record as `evaluations/STAGE/SET.jsonl` holds it."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        del fields["answers"]
        return fields


def evaluation_line(
    records: Sequence[PromptRecord],
    *,
    update: int,
    stage: str,
    data_set: str,
    time: float,
    cpu_seconds: float,
    greedy: bool = False,
) -> dict[str, Any]:
    """One line of `evaluations.jsonl`. `cpu_seconds`: what the stage had spent at `update`; `greedy`: it was asked for.

    `time` is in seconds since the epoch. An estimate is None where nothing of its area could be judged.
    """
    return {
        "update": update,
        "stage": stage,
        "set": data_set,
        "time": time,
        "cpu_seconds": cpu_seconds,
        "samples": max((len(record.scores) for record in records), default=0),
        "domains": {name: _score(families, greedy) for name, families in _by_domain(records).items()},
        "families": {
            family[0].area: _score([family], greedy) for families in _by_domain(records).values() for family in families
        },
        "modes": {name: _modes(families) for name, families in _by_domain(records).items()},
    }


def compare(a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The paired differences a - b of two checkpoints' sampled pass@1 on the same set, from the lines of `SET.jsonl`.

    Returns `{"domains": {name: difference}, "families": {...}}`; what has no prompt in common is left out.
    """
    of_a, of_b = _scores_by_family(a), _scores_by_family(b)
    common = [area for area in of_a if area in of_b]
    families = {area: stratified_difference([(of_a[area], of_b[area])]) for area in common}
    domains: dict[str, Difference | None] = {}
    for domain in dict.fromkeys(area.split("/")[0] for area in common):
        strata = [(of_a[area], of_b[area]) for area in common if area.split("/")[0] == domain]
        domains[domain] = stratified_difference(strata)
    return {
        "domains": {name: asdict(found) for name, found in domains.items() if found},
        "families": {name: asdict(found) for name, found in families.items() if found},
    }


def agreement(judged: Iterable[tuple[str, float | None, float]]) -> dict[str, Any]:
    """How well a reward model's scores follow a rule's verdicts, from (prompt id, rule's score, reward model's score).

    `reward_model_pairs`: of the pairs (passes, fails) of one prompt, the share in which the passing answer scores
    higher; `reward_model_auc`: the same over the pairs of all prompts. Ties count half; null where there is no pair.
    """
    known = [(prompt, score == 1.0, value) for prompt, score, value in judged if score is not None]
    prompts: dict[str, list[tuple[bool, float]]] = {}
    for prompt, passed, value in known:
        prompts.setdefault(prompt, []).append((passed, value))
    inside = [win for answers in prompts.values() for win in _wins(answers)]
    across = _wins([(passed, value) for _, passed, value in known])
    return {
        "reward_model_pairs": _mean(inside),
        "reward_model_auc": _mean(across),
        "pairs": len(inside),
        "prompts": len(prompts),
    }


def _wins(answers: Sequence[tuple[bool, float]]) -> list[float]:
    passing = [value for passed, value in answers if passed]
    failing = [value for passed, value in answers if not passed]
    return [(high > low) + 0.5 * (high == low) for high, low in product(passing, failing)]


def _by_domain(records: Sequence[PromptRecord]) -> dict[str, list[list[PromptRecord]]]:
    """The records of each domain, family by family, in order of first appearance."""
    domains: dict[str, dict[str, list[PromptRecord]]] = {}
    for record in records:
        domains.setdefault(record.domain, {}).setdefault(record.family, []).append(record)
    return {name: list(families.values()) for name, families in domains.items()}


def _score(families: Sequence[Sequence[PromptRecord]], greedy: bool) -> dict[str, Any]:
    """The score of an area that holds these families."""
    records = [record for family in families for record in family]
    samples = max(len(record.scores) for record in records)
    greedy_estimate = combined([mean_interval([[record.greedy] for record in family]) for family in families])
    faults = sum(score is None for record in records for score in record.scores)
    return {
        "sampled": _fields(stratified_interval([[record.scores for record in family] for family in families])),
        "greedy": _fields(greedy_estimate) if greedy else None,
        "pass_at_k": _fields(
            combined([pass_at_k_interval([record.scores for record in family], samples) for family in families])
        ),
        "prompts": len(records),
        "samples": samples,
        "tokens": _mean([_pooled(record.tokens for record in family) for family in families]),
        "truncated": _mean([_pooled(record.truncated for record in family) for family in families]),
        "faults": faults + (sum(record.greedy is None for record in records) if greedy else 0),
    }


def _modes(families: Sequence[Sequence[PromptRecord]]) -> dict[str, Any]:
    """Share and mean score of the responses with and without reasoning, over all responses of a domain."""
    responses = [
        (terse, score)
        for family in families
        for record in family
        for terse, score in zip(record.terse, record.scores, strict=True)
    ]
    modes = {}
    for name, flag in (("worked", 0), ("terse", 1)):
        scores = [score for terse, score in responses if terse == flag]
        judged = [score for score in scores if score is not None]
        modes[name] = {"mean": _mean(judged), "share": len(scores) / len(responses)}
    return modes


def _scores_by_family(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Sequence[float | None]]]:
    families: dict[str, dict[str, Sequence[float | None]]] = {}
    for line in lines:
        families.setdefault(f"{line['domain']}/{line['family']}", {})[line["id"]] = line["scores"]
    return families


def _fields(estimate: Estimate | None) -> dict[str, float] | None:
    return asdict(estimate) if estimate else None


def _pooled(values: Iterable[Sequence[int]]) -> float:
    flat = [value for some in values for value in some]
    return math.fsum(flat) / len(flat)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
