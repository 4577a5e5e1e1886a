"""The audit of rows and their verifiers: only right responses pass, every time, and in bounded time.

A reward that refuses right answers teaches nothing; one that accepts garbage teaches garbage. The audit finds both
before training. Read `audit`, then the three rounds in `audit_cases`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from qwq_rl.audit.findings import Finding, Kind, Report
from qwq_rl.audit.probes import GARBAGE, HOSTILE, Claim, answered, claims, hedges, unanswered
from qwq_rl.data.row import Check, Row
from qwq_rl.rewards.reward import Scored
from qwq_rl.rewards.scorer import names_of
from qwq_rl.verifiers import Response, Verdict, Verifier
from qwq_rl.verifiers.runner.judge import judge
from qwq_rl.verifiers.verdicts import describe, shown

BATCH = 32
"""Rows judged together; the time limit is checked between batches."""
HOSTILE_SECONDS = 20.0
"""How long a verdict on a hostile text may take, in seconds."""

Item = tuple[Row, Response]
_Outcome = list[tuple[float | None, str]]
"""Score and status of each verdict on a response."""


class Auditable(Protocol):
    """What is audited: `qwq_rl.rewards.scorer.Scorer`, `Grader`, or one verifier."""

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Score responses, one result an item, in order."""

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """The checks that `score` makes of the row's responses, each with its verifier."""


class Alone:
    """One verifier alone, without gates. `check_of` returns the check that it makes for a row."""

    def __init__(self, verifier: Verifier, check_of: Callable[[Row], Check]) -> None:
        self._verifier, self._check_of = verifier, check_of

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """The one check."""
        return [(self._check_of(row), self._verifier)]

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Score responses, one result per item. The score is None if the check has another role than `score`."""
        checks = [self._check_of(row) for row, _ in items]
        results: dict[int, Scored] = {}
        for role in dict.fromkeys(check.role for check in checks):
            indices = [i for i, check in enumerate(checks) if check.role == role]
            items_of_role = [
                ({**items[index][0], "reference": checks[index].reference}, items[index][1]) for index in indices
            ]
            for index, verdict in zip(indices, judge(self._verifier, items_of_role, role), strict=True):
                score = verdict.score if role == "score" else None
                gates = {checks[index].verifier: verdict.score == 1} if role == "gate" else {}
                results[index] = Scored(score, score, {checks[index].verifier: verdict}, gates, None)
        return [results[index] for index in range(len(items))]


@dataclass
class _AuditedRow:
    """One row under audit, with its findings so far."""

    place: int
    row: Row
    checks: list[tuple[Check, Verifier]]
    claims: list[Claim] = field(default_factory=list)
    right: Response | None = None
    """A response of a claim that passed."""
    heard: dict[str, _Outcome] = field(default_factory=dict)
    """The outcome of each response judged so far, by its text."""
    wrong: str | None = None
    """The answer to another reference, in the form that passed for the row's own reference."""
    form: str = ""
    """Text about the gate that the row's solution does not pass; "" if it passes all."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def scored(self) -> bool:
        return any(check.role == "score" for check, _ in self.checks)

    def excused(self, claim: Claim) -> set[str]:
        """The gates that a right answer need not pass.

        Rules for all rows of a domain are about form, so every claim is excused from them. An answer that the audit
        itself put into words is excused from the row's own gates too.
        """
        named_checks = zip(names_of([check for check, _ in self.checks]), self.checks, strict=True)
        synthetic = claim.kind == "reference"
        return {name for name, (check, _) in named_checks if check.role == "gate" and (synthetic or check.of_domain)}

    def find(self, kind: Kind, reason: str) -> None:
        """Add a finding. A second one of the same kind is ignored."""
        if all(finding.kind != kind for finding in self.findings):
            row_id = str(self.row.get("id", self.place))
            self.findings.append(Finding(row_id, self.place, self.row.get("domain"), kind, reason))


def audit(
    rows: Iterable[tuple[int, Row]],
    judging: Auditable,
    *,
    opened: bool = False,
    seconds: float | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Report:
    """Audit numbered rows, as many as `seconds` allow.

    For each row that has a check of role `score`: its solution, or the answer that its reference stands for, must
    pass; empty answers, garbage, a wrong answer and hedges must fail; judging again must give the same verdicts. One
    row of each verifier also gets hostile texts. `opened`: solutions follow a prompt that has opened the thinking.
    `on_rows` is called with the number of rows done.
    """
    started, slowest, stress_tested = time.monotonic(), 0.0, set[int]()
    done = open_rows = proven = 0
    findings: list[Finding] = []
    complete = True
    for batch in _batches(rows):
        # `done`: at least one batch is audited, however short the time.
        if seconds is not None and done and time.monotonic() - started > seconds:
            complete = False
            break
        cases = [_AuditedRow(place, row, judging.checks(row)) for place, row in batch]
        audit_cases(cases, judging, opened)
        for case in cases:
            # Hostile texts are slow to judge: once per verifier is enough.
            untested = {id(verifier) for check, verifier in case.checks if check.role == "score"} - stress_tested
            if untested:
                stress_tested |= untested
                slowest = max(slowest, _hostile(case, judging))
            findings += case.findings
        done += len(cases)
        open_rows += sum(not case.scored for case in cases)
        proven += sum(case.scored and case.right is not None for case in cases)
        if on_rows is not None:
            on_rows(done)
    return Report(done, open_rows, proven, complete, time.monotonic() - started, slowest, tuple(findings))


def audit_cases(cases: Sequence[_AuditedRow], judging: Auditable, opened: bool) -> None:
    """Three rounds over some rows. Rounds two and three take only rows that have no finding so far."""
    for case in cases:
        try:
            case.claims = claims(case.row, case.checks, opened)
        except Exception as error:  # a verifier's own `self_answer`
            case.find("fault", f"the verifier's self_answer raised {describe(error)}")
    _expect_passes(cases, judging)
    sound = [case for case in cases if case.scored and not case.findings]
    _expect_failures(sound, judging)
    _expect_same_again([case for case in sound if case.right is not None], judging)
    for case in cases:
        if case.scored and case.right is None and not case.findings:
            case.find("unproven", "it has no `solution`, and its reference is no answer")
        if case.form:
            case.find("form", case.form)


def _expect_passes(cases: Sequence[_AuditedRow], judging: Auditable) -> None:
    """Round one: at least one response of each claim must pass."""
    probes = [(case, claim, index) for case in cases for claim in case.claims for index in range(len(claim.responses))]
    judged = judging.score([(case.row, claim.responses[index]) for case, claim, index in probes])
    results_of: dict[tuple[int, int], list[Scored]] = {}
    for (case, claim, _), scored in zip(probes, judged, strict=True):
        results_of.setdefault((id(case), id(claim)), []).append(scored)
    for case in cases:
        for claim in case.claims:
            results = results_of[id(case), id(claim)]
            excused = case.excused(claim)
            index = next((index for index, scored in enumerate(results) if passes(scored, case.scored, excused)), None)
            if index is not None:
                case.right = claim.responses[index]
                case.heard[case.right.text] = _outcome(results[index])
                case.wrong = claim.wrong[index] if claim.wrong else None
                case.form = case.form or _form(claim, results[index])
            elif claim.needed:
                faulty = all(_is_fault(scored) for scored in results)
                case.find("fault" if faulty else claim.kind, _why_not_passed(case, claim, results))


def passes(scored: Scored, has_score: bool = True, excused: Collection[str] = ()) -> bool:
    """Whether a response has score 1 and every gate holds except the excused ones. Penalties do not count."""
    judged = all(verdict.score is not None for verdict in scored.verdicts.values())
    gates = all(holds for name, holds in scored.gates.items() if name not in excused)
    return judged and gates and (scored.score == 1.0 or not has_score)


def _form(claim: Claim, scored: Scored) -> str:
    """Say which gate a passing solution does not hold (an excused one); "" if it holds all."""
    failed_gate = next((name for name, holds in scored.gates.items() if not holds), None)
    if claim.kind != "solution" or failed_gate is None:
        return ""
    return f"its solution passes, but not the gate {failed_gate}: {scored.verdicts[failed_gate].reason}"


def _is_fault(scored: Scored) -> bool:
    return any(verdict.score is None and verdict.status != "bad_reference" for verdict in scored.verdicts.values())


def _why_not_passed(case: _AuditedRow, claim: Claim, results: Sequence[Scored]) -> str:
    """Say why no response of a claim passed: the reasons for the first one that has an answer, else for the first."""
    furthest = max(
        results, key=lambda scored: all(verdict.status != "no_answer" for verdict in scored.verdicts.values())
    )
    excused, reasons = case.excused(claim), list[str]()
    for (name, verdict), (check, _) in zip(furthest.verdicts.items(), case.checks, strict=True):
        counts = check.role != "penalty" and name not in excused
        if verdict.score is None or (counts and verdict.score < 1):
            reasons.append(f"{name}: {verdict.status}, {verdict.reason}")
    failed_gates = (name for name, holds in furthest.gates.items() if not holds)
    reasons += [f"gate {name} does not hold" for name in failed_gates if name not in excused]
    answer = claim.responses[results.index(furthest)].answer
    subject = "its solution" if claim.kind == "solution" else f"the answer {shown(answer)}"
    return f"{subject} does not pass: {'; '.join(reasons)}"


def _expect_failures(cases: Sequence[_AuditedRow], judging: Auditable) -> None:
    """Round two: responses that must fail."""
    _must_fail(cases, judging, lambda case: unanswered(case.right.answer if case.right else "hm"), "empty")
    _must_fail(cases, judging, lambda case: [answered(text) for text in GARBAGE], "garbage")
    with_wrong_answer = [case for case in cases if case.wrong is not None]
    _must_fail(with_wrong_answer, judging, lambda case: [answered(case.wrong or "")], "garbage")
    # Hedges come last: a hedge is wrong only if its other answer was refused just above.
    sound = [case for case in with_wrong_answer if case.right and not case.findings]
    _must_fail(sound, judging, lambda case: _hedged(case), "hedge")


def _hedged(case: _AuditedRow) -> list[Response]:
    return [answered(text) for text in hedges(case.right.answer if case.right else "", case.wrong or "")]


def _must_fail(
    cases: Sequence[_AuditedRow], judging: Auditable, responses: Callable[[_AuditedRow], list[Response]], kind: Kind
) -> None:
    """Judge `responses(case)` of each case; a response that passes is a finding of `kind`."""
    probes = [(case, response) for case in cases for response in responses(case)]
    for (case, response), scored in zip(probes, judging.score([(c.row, r) for c, r in probes]), strict=True):
        case.heard[response.text] = _outcome(scored)
        unjudged = _unjudged(scored)
        if unjudged is not None:
            fault_kind: Kind = "reference" if unjudged.status == "bad_reference" else "fault"
            case.find(fault_kind, f"no verdict on {shown(repr(response.text))}: {unjudged.status}, {unjudged.reason}")
        elif passes(scored):
            case.find(kind, f"{shown(repr(response.answer or response.text))} passes")


def _unjudged(scored: Scored) -> Verdict | None:
    return next((verdict for verdict in scored.verdicts.values() if verdict.score is None), None)


def _expect_same_again(cases: Sequence[_AuditedRow], judging: Auditable) -> None:
    """Round three: the right response and garbage must get the same verdicts again, in another batch order."""
    probes = [(case, response) for case in cases[::-1] for response in (answered(GARBAGE[0]), case.right) if response]
    for (case, response), scored in zip(probes, judging.score([(c.row, r) for c, r in probes]), strict=True):
        before, now = case.heard[response.text], _outcome(scored)
        if before != now:
            case.find("unstable", f"{shown(repr(response.text))} got {_in_words(before)}, and then {_in_words(now)}")


def _outcome(scored: Scored) -> _Outcome:
    return [(verdict.score, verdict.status) for verdict in scored.verdicts.values()]


def _in_words(outcome: _Outcome) -> str:
    return ", ".join(f"{status} ({score})" for score, status in outcome)


def _hostile(case: _AuditedRow, judging: Auditable) -> float:
    """Return the seconds of the longest verdict on a hostile text. Slow or missing verdicts become findings."""
    longest = 0.0
    for name, text in HOSTILE.items():
        started = time.monotonic()
        # One text per call, so that the time belongs to it alone.
        (scored,) = judging.score([(case.row, answered(text))])
        took = time.monotonic() - started
        longest = max(longest, took)
        unjudged = _unjudged(scored)
        if took > HOSTILE_SECONDS:
            case.find("slow", f"{name} took {took:.1f} s, more than {HOSTILE_SECONDS:g} s")
        elif unjudged is not None and unjudged.status == "fault":
            case.find("fault", f"no verdict on {name}: {unjudged.reason}")
    return longest


def _batches(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        yield batch
