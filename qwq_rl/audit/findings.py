"""The findings of an audit, and its report as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["reference", "solution", "fault", "unstable", "slow", "empty", "garbage", "hedge", "form", "unproven"]

SAYS: dict[Kind, str] = {
    "reference": "references that do not accept themselves",
    "solution": "solutions that do not pass",
    "fault": "could not be judged",
    "unstable": "get another verdict when judged again",
    "slow": "take too long over a hostile text",
    "empty": "pass without an answer",
    "garbage": "pass with an answer that answers nothing, or a wrong one",
    "hedge": "pass with two answers of which one is right",
    "form": "have a solution that would get no reward by a rule of the domain",
    "unproven": "have nothing that must pass: no solution, and their reference is no answer",
}
"""Text for the rows with a finding of each kind, in the order of the report."""

BROKEN = frozenset[Kind]({"reference", "solution", "fault", "unstable"})
"""Kinds that make a row unusable for training: a right response is not rewarded, or not always."""
TOLD = frozenset[Kind]({"form", "unproven"})
"""Kinds that are only reported: neither the row nor the verifier fails the audit."""
SHOWN = 5
"""How many rows of each kind the terminal shows; the JSON report has all."""


@dataclass(frozen=True)
class Finding:
    """One problem of a row, or of how its verifier judges it."""

    id: str
    place: int
    """Line or number of the row in its source, from 1."""
    domain: str | None
    kind: Kind
    reason: str


@dataclass(frozen=True)
class Report:
    """The outcome of an audit."""

    rows: int
    """Rows audited."""
    open: int
    """Rows without a check of role `score`: there is nothing to audit."""
    proven: int
    """Rows for which a response that must pass does pass."""
    complete: bool
    """Whether every row was audited; False if the time ran out."""
    seconds: float
    slowest: float
    """Seconds of the longest verdict on a hostile text."""
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong. Findings of the kinds in TOLD do not count."""
        return all(finding.kind in TOLD for finding in self.findings)

    def broken(self, domain: str | None = None) -> int:
        """How many rows (of a domain) cannot be used for training."""
        return self._count(BROKEN, domain)

    def count(self, kind: Kind, domain: str | None = None) -> int:
        """How many rows (of a domain) have a finding of this kind."""
        return self._count(frozenset({kind}), domain)

    def _count(self, kinds: frozenset[Kind], domain: str | None) -> int:
        counted = (finding for finding in self.findings if finding.kind in kinds and domain in (None, finding.domain))
        # One row may have several findings: count it once.
        return len({(finding.domain, finding.id, finding.place) for finding in counted})

    def record(self, name: str) -> dict[str, Any]:
        """The report as a JSON object (docs/contracts.md, "An audit"); `name` says what was audited."""
        counts = Counter(finding.kind for finding in self.findings)
        return {
            "name": name,
            "passed": self.passed,
            "rows": self.rows,
            "open": self.open,
            "proven": self.proven,
            "broken": self.broken(),
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
            "slowest": round(self.slowest, 3),
            "counts": {kind: counts[kind] for kind in SAYS if counts[kind]},
            "findings": [asdict(finding) for finding in self.findings],
        }


def told(report: Report, name: str) -> str:
    """The report as text for a terminal."""
    return "\n".join(_lines(report, name))


def _lines(report: Report, name: str) -> Iterator[str]:
    judged = report.rows - report.open
    word = "passed" if report.passed else "FAILED"
    yield f"audit of {name}: {word}"
    note = "" if report.complete else " (the time ran out: the rest was not looked at)"
    yield f"  {report.rows} rows in {report.seconds:.1f} s{note}: {report.proven} of {judged} proven" + (
        f", {report.open} open" if report.open else ""
    )
    for kind, meaning in SAYS.items():
        of_kind = [finding for finding in report.findings if finding.kind == kind]
        if of_kind:
            yield f"  {len({item.place for item in of_kind})} {meaning}"
            yield from listed(of_kind)
    yield f"  longest verdict on a hostile text: {report.slowest:.2f} s"


def listed(findings: Sequence[Finding], shown: int = SHOWN, indent: str = "    ") -> Iterator[str]:
    """Yield the first findings, one per line, and how many more there are."""
    for finding in findings[:shown]:
        yield f"{indent}{finding.id} (row {finding.place}): {finding.reason}"
    if len(findings) > shown:
        yield f"{indent}... and {len(findings) - shown} more"
