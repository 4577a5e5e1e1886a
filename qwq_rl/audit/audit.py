"""The audit of rows and their verifiers: what is right passes, nothing else does, always, and in bounded time.

A reward that says no to right answers teaches nothing; one that says yes to garbage teaches garbage. Both are found
here, before anything trains on them.
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
"""Rows judged together; the time is looked at between batches."""
HOSTILE_SECONDS = 20.0
"""How long a verdict on a hostile text may take."""

Item = tuple[Row, Response]
_Said = list[tuple[float | None, str]]
"""Score and status of each verdict on a response."""


class Auditable(Protocol):
    """What is audited: `qwq_rl.rewards.scorer.Scorer`, `Grader`, or one verifier."""

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Score responses, one result an item, in order."""

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """What `score` asks of the row's responses, and whom."""


class Alone:
    """One verifier by itself, without gates; `check_of` says what it is asked of a row."""

    def __init__(self, verifier: Verifier, check_of: Callable[[Row], Check]) -> None:
        self._verifier, self._check_of = verifier, check_of

    def checks(self, row: Row) -> list[tuple[Check, Verifier]]:
        """The one check."""
        return [(self._check_of(row), self._verifier)]

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """The verdicts; a check of another role than `score` leaves the score open."""
        checks = [self._check_of(row) for row, _ in items]
        found: dict[int, Scored] = {}
        for role in dict.fromkeys(check.role for check in checks):
            places = [place for place, check in enumerate(checks) if check.role == role]
            asked = [({**items[at][0], "reference": checks[at].reference}, items[at][1]) for at in places]
            for at, verdict in zip(places, judge(self._verifier, asked, role), strict=True):
                score = verdict.score if role == "score" else None
                gates = {checks[at].verifier: verdict.score == 1} if role == "gate" else {}
                found[at] = Scored(score, score, {checks[at].verifier: verdict}, gates, None)
        return [found[at] for at in range(len(items))]


@dataclass
class _AuditedRow:
    """One row under audit, and what was found."""

    place: int
    row: Row
    checks: list[tuple[Check, Verifier]]
    claims: list[Claim] = field(default_factory=list)
    right: Response | None = None
    """A response that passed, as it must."""
    heard: dict[str, _Said] = field(default_factory=dict)
    """What was said of responses, by their texts."""
    wrong: str | None = None
    """The answer that stands for another reference, in the form that passed for the row's own."""
    form: str = ""
    """Which rule for all rows of the domain does not hold of the row's solution."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def scored(self) -> bool:
        return any(check.role == "score" for check, _ in self.checks)

    def excused(self, claim: Claim) -> set[str]:
        """The gates that a right answer need not pass.

        A rule for all rows speaks of form, and an answer put into words here has none that counts.
        """
        named = zip(names_of([check for check, _ in self.checks]), self.checks, strict=True)
        synthetic = claim.kind == "reference"
        return {name for name, (check, _) in named if check.role == "gate" and (synthetic or check.of_domain)}

    def find(self, kind: Kind, reason: str) -> None:
        """Note one finding of a kind; a second of the same kind adds nothing."""
        if all(finding.kind != kind for finding in self.findings):
            name = str(self.row.get("id", self.place))
            self.findings.append(Finding(name, self.place, self.row.get("domain"), kind, reason))


def audit(
    rows: Iterable[tuple[int, Row]],
    judging: Auditable,
    *,
    opened: bool = False,
    seconds: float | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Report:
    """Audit numbered rows, as many as `seconds` allow.

    Of each row that has a check of role `score`: its solution, or an answer that its reference stands for, passes;
    empty answers, garbage, a wrong answer and hedges do not; the verdicts come again when asked again. One row of each
    verifier also gets hostile texts. `opened`: solutions follow a prompt that has opened the thinking. `on_rows` is
    told how many rows are done.
    """
    started, slowest, hardened = time.monotonic(), 0.0, set[int]()
    done = is_open = proven = 0
    findings: list[Finding] = []
    complete = True
    for batch in _batches(rows):
        if seconds is not None and done and time.monotonic() - started > seconds:
            complete = False
            break
        cases = [_AuditedRow(place, row, judging.checks(row)) for place, row in batch]
        audit_cases(cases, judging, opened)
        for case in cases:
            fresh = {id(verifier) for check, verifier in case.checks if check.role == "score"} - hardened
            if fresh:
                hardened |= fresh
                slowest = max(slowest, _hostile(case, judging))
            findings += case.findings
        done += len(cases)
        is_open += sum(not case.scored for case in cases)
        proven += sum(case.scored and case.right is not None for case in cases)
        if on_rows is not None:
            on_rows(done)
    return Report(done, is_open, proven, complete, time.monotonic() - started, slowest, tuple(findings))


def audit_cases(cases: Sequence[_AuditedRow], judging: Auditable, opened: bool) -> None:
    """Three rounds over some rows, the later ones for those that are sound so far."""
    for case in cases:
        try:
            case.claims = claims(case.row, case.checks, opened)
        except Exception as error:  # a verifier's own `self_answer`
            case.find("fault", f"the verifier's self_answer raised {describe(error)}")
    _prove(cases, judging)
    sound = [case for case in cases if case.scored and not case.findings]
    _refuse(sound, judging)
    _repeat([case for case in sound if case.right is not None], judging)
    for case in cases:
        if case.scored and case.right is None and not case.findings:
            case.find("unproven", "it has no `solution`, and its reference is no answer")
        if case.form:
            case.find("form", case.form)


def _prove(cases: Sequence[_AuditedRow], judging: Auditable) -> None:
    """Round one: what must pass."""
    asked = [(case, claim, at) for case in cases for claim in case.claims for at in range(len(claim.responses))]
    judged = judging.score([(case.row, claim.responses[at]) for case, claim, at in asked])
    said: dict[tuple[int, int], list[Scored]] = {}
    for (case, claim, _), scored in zip(asked, judged, strict=True):
        said.setdefault((id(case), id(claim)), []).append(scored)
    for case in cases:
        for claim in case.claims:
            results = said[id(case), id(claim)]
            excused = case.excused(claim)
            at = next((at for at, scored in enumerate(results) if passes(scored, case.scored, excused)), None)
            if at is not None:
                case.right = claim.responses[at]
                case.heard[case.right.text] = _said(results[at])
                case.wrong = claim.wrong[at] if claim.wrong else None
                case.form = case.form or _form(claim, results[at])
            elif claim.needed:
                faulty = all(_is_fault(scored) for scored in results)
                case.find("fault" if faulty else claim.kind, _refusal(case, claim, results))


def passes(scored: Scored, has_score: bool = True, excused: Collection[str] = ()) -> bool:
    """Whether a response has the whole score and every gate but the excused holds; penalties do not count."""
    judged = all(verdict.score is not None for verdict in scored.verdicts.values())
    gates = all(holds for name, holds in scored.gates.items() if name not in excused)
    return judged and gates and (scored.score == 1.0 or not has_score)


def _form(claim: Claim, scored: Scored) -> str:
    """Which gate of the checks does not hold of a solution that passes, empty where all do."""
    fails = next((name for name, holds in scored.gates.items() if not holds), None)
    if claim.kind != "solution" or fails is None:
        return ""
    return f"its solution passes, but not the gate {fails}: {scored.verdicts[fails].reason}"


def _is_fault(scored: Scored) -> bool:
    return any(said.score is None and said.status != "bad_reference" for said in scored.verdicts.values())


def _refusal(case: _AuditedRow, claim: Claim, results: Sequence[Scored]) -> str:
    """Why none of a claim's responses passed: what was said of the one that came furthest."""
    furthest = max(
        results, key=lambda scored: all(verdict.status != "no_answer" for verdict in scored.verdicts.values())
    )
    excused, said = case.excused(claim), list[str]()
    for (name, verdict), (check, _) in zip(furthest.verdicts.items(), case.checks, strict=True):
        counts = check.role != "penalty" and name not in excused
        if verdict.score is None or (counts and verdict.score < 1):
            said.append(f"{name}: {verdict.status}, {verdict.reason}")
    fails = (name for name, holds in furthest.gates.items() if not holds)
    said += [f"gate {name} does not hold" for name in fails if name not in excused]
    answer = claim.responses[results.index(furthest)].answer
    what = "its solution" if claim.kind == "solution" else f"the answer {shown(answer)}"
    return f"{what} does not pass: {'; '.join(said)}"


def _refuse(cases: Sequence[_AuditedRow], judging: Auditable) -> None:
    """Round two: what must not pass, hedges last, as the other answer must be known to be wrong."""
    _must_fail(cases, judging, lambda case: unanswered(case.right.answer if case.right else "hm"), "empty")
    _must_fail(cases, judging, lambda case: [answered(text) for text in GARBAGE], "garbage")
    named = [case for case in cases if case.wrong is not None]
    _must_fail(named, judging, lambda case: [answered(case.wrong or "")], "garbage")
    sure = [case for case in named if case.right and not case.findings]
    _must_fail(sure, judging, lambda case: _hedged(case), "hedge")


def _hedged(case: _AuditedRow) -> list[Response]:
    return [answered(text) for text in hedges(case.right.answer if case.right else "", case.wrong or "")]


def _must_fail(
    cases: Sequence[_AuditedRow], judging: Auditable, responses: Callable[[_AuditedRow], list[Response]], kind: Kind
) -> None:
    asked = [(case, response) for case in cases for response in responses(case)]
    for (case, response), scored in zip(asked, judging.score([(c.row, r) for c, r in asked]), strict=True):
        case.heard[response.text] = _said(scored)
        unjudged = _unjudged(scored)
        if unjudged is not None:
            said: Kind = "reference" if unjudged.status == "bad_reference" else "fault"
            case.find(said, f"no verdict on {shown(repr(response.text))}: {unjudged.status}, {unjudged.reason}")
        elif passes(scored):
            case.find(kind, f"{shown(repr(response.answer or response.text))} passes")


def _unjudged(scored: Scored) -> Verdict | None:
    return next((verdict for verdict in scored.verdicts.values() if verdict.score is None), None)


def _repeat(cases: Sequence[_AuditedRow], judging: Auditable) -> None:
    """Round three: what passed passes again, and garbage fails as it did, in another company."""
    asked = [(case, response) for case in cases[::-1] for response in (answered(GARBAGE[0]), case.right) if response]
    for (case, response), scored in zip(asked, judging.score([(c.row, r) for c, r in asked]), strict=True):
        before, now = case.heard[response.text], _said(scored)
        if before != now:
            case.find("unstable", f"{shown(repr(response.text))} got {_words(before)}, and then {_words(now)}")


def _said(scored: Scored) -> _Said:
    return [(verdict.score, verdict.status) for verdict in scored.verdicts.values()]


def _words(said: _Said) -> str:
    return ", ".join(f"{status} ({score})" for score, status in said)


def _hostile(case: _AuditedRow, judging: Auditable) -> float:
    """Seconds of the longest verdict on a hostile text; notes those that take too long or get none."""
    longest = 0.0
    for name, text in HOSTILE.items():
        started = time.monotonic()
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
    left = iter(rows)
    while batch := list(islice(left, BATCH)):
        yield batch
