"""Computes the estimates of an evaluation from judged responses (docs/contracts.md, "evaluations.jsonl"). Pure.

The value of a family is the mean over its prompts. The value of a domain is the mean of its families' values, so that
each family has the same weight. The general score is thus the mean of its families' pass@1.
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
    """The judged responses to one prompt. The tuples have one entry per sample. A score of None: it was not judged."""

    id: str
    domain: str
    family: str
    prompt: str
    scores: tuple[float | None, ...]
    greedy: float | None
    """The score of the greedy response; None also if there was no greedy response."""
    tokens: tuple[int, ...]
    terse: tuple[int, ...]
    """1 if the reasoning is empty, else 0."""
    truncated: tuple[int, ...]
    """1 if the token limit ended the response, else 0."""
    response: str
    """The first sample as decoded; `status` and `reason` are those of its verdict."""
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
    """One line of `evaluations.jsonl`. `cpu_seconds`: used by the stage up to `update`. `greedy`: it was requested.

    `time` is in seconds since the epoch. An estimate is None if nothing of its area could be judged.
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

    Returns `{"domains": {name: difference}, "families": {...}}`. Areas without a common prompt are left out.
    """
    of_a, of_b = _scores_by_family(a), _scores_by_family(b)
    common = [area for area in of_a if area in of_b]
    families = {area: stratified_difference([(of_a[area], of_b[area])]) for area in common}
    domains: dict[str, Difference | None] = {}
    for domain in dict.fromkeys(area.split("/")[0] for area in common):
        strata = [(of_a[area], of_b[area]) for area in common if area.split("/")[0] == domain]
        domains[domain] = stratified_difference(strata)
    return {
        "domains": {name: asdict(difference) for name, difference in domains.items() if difference},
        "families": {name: asdict(difference) for name, difference in families.items() if difference},
    }


def agreement(judged: Iterable[tuple[str, float | None, float]]) -> dict[str, Any]:
    """How well a reward model's scores follow a rule's verdicts, from (prompt id, rule's score, reward model's score).

    `reward_model_pairs`: among all pairs (passing answer, failing answer) of the same prompt, the share in which the
    passing answer scores higher. `reward_model_auc`: the same for pairs across all prompts. A tie counts half. None if
    there is no pair.
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
    """For each pair of a passing and a failing answer: 1 if the passing one scores higher, 0.5 for a tie, else 0."""
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
    """The score of an area that consists of these families."""
    records = [record for family in families for record in family]
    samples = max(len(record.scores) for record in records)
    greedy_estimate = combined([mean_interval([[record.greedy] for record in family]) for family in families])
    faults = sum(score is None for record in records for score in record.scores)
    # Each value is the mean of the families' values, so that every family has the same weight.
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
    """The mean over all samples of all prompts."""
    flat = [value for values_of_prompt in values for value in values_of_prompt]
    return math.fsum(flat) / len(flat)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
