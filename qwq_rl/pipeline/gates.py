"""What a stage must have reached before the next one may start. Pure: an evaluation in, verdicts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwq_rl.config.recipe import Requirement


@dataclass(frozen=True)
class GateResult:
    """One requirement on one domain or family. `value` is None where it could not be measured; `note` says why."""

    measure: str
    scope: str
    value: float | None
    above: float
    passed: bool
    note: str = ""

    def describe(self) -> str:
        """One line: what, where, how much, and how much it must be."""
        value = "not measured" if self.value is None else f"{self.value:.3f}"
        verdict = "passed" if self.passed else "failed"
        note = f", {self.note}" if self.note else ""
        return f"{self.measure} of {self.scope} {verdict}: {value}, must be above {self.above:g}{note}"


def judge(requirements: Sequence[Requirement], evaluation: Mapping[str, Any]) -> list[GateResult]:
    """Measure every requirement on `evaluation` (one line of evaluations.jsonl): a result a domain or family."""
    return [result for requirement in requirements for result in _judge_one(requirement, evaluation)]


def _judge_one(requirement: Requirement, evaluation: Mapping[str, Any]) -> list[GateResult]:
    results = []
    for domain in requirement.domains or sorted(evaluation["domains"]):
        if domain not in evaluation["domains"]:
            results.append(_result(requirement, domain, None, False, "the set has no prompt of this domain"))
        elif requirement.measure == "worked_minus_terse":
            results.append(_worked_minus_terse(requirement, domain, evaluation["modes"].get(domain)))
        elif requirement.over == "families":
            families = [name for name in sorted(evaluation["families"]) if name.split("/")[0] == domain]
            results += [_score(requirement, name, evaluation["families"][name]) for name in families]
        else:
            results.append(_score(requirement, domain, evaluation["domains"][domain]))
    return results


def _score(requirement: Requirement, scope: str, area: Mapping[str, Any]) -> GateResult:
    estimate = area["pass_at_k" if requirement.measure == "pass_at_k" else "sampled"]
    if estimate is None or estimate["mean"] is None:
        return _result(requirement, scope, None, False, "no response of it could be judged")
    return _result(requirement, scope, estimate["mean"], estimate["mean"] > requirement.above)


def _worked_minus_terse(requirement: Requirement, domain: str, modes: Mapping[str, Any] | None) -> GateResult:
    """Worked answers must beat terse ones; without terse answers there is nothing to collapse into."""
    if modes is None or not modes["worked"]["share"]:
        return _result(requirement, domain, None, False, "no response reasons before it answers")
    if not modes["terse"]["share"]:
        return _result(requirement, domain, None, True, "no terse responses")
    if modes["worked"]["mean"] is None or modes["terse"]["mean"] is None:
        return _result(requirement, domain, None, False, "no response of a kind could be judged")
    value = modes["worked"]["mean"] - modes["terse"]["mean"]
    return _result(requirement, domain, value, value > requirement.above)


def _result(requirement: Requirement, scope: str, value: float | None, passed: bool, note: str = "") -> GateResult:
    return GateResult(requirement.measure, scope, value, requirement.above, passed, note)
