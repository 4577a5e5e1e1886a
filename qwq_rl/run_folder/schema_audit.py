"""The schema of what `qwq-rl verify`, its audit and `qwq-rl rescore` write (docs/contracts.md)."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from qwq_rl.run_folder.schema import VerdictRecord


class VerdictLine(VerdictRecord):
    """One line of what `qwq-rl verify` writes."""

    id: str


class AuditFinding(TypedDict):
    """One problem that an audit found in a row, or in how its verifier judges it."""

    id: str
    place: int
    domain: str | None
    kind: Literal["reference", "solution", "fault", "unstable", "slow", "empty", "garbage", "hedge", "form", "unproven"]
    reason: str


class AuditRecord(TypedDict):
    """The report of an audit. Only `STAGE/audit.json` has `key`."""

    key: NotRequired[str | None]
    name: str
    passed: bool
    rows: int
    open: int
    proven: int
    broken: int
    complete: bool
    seconds: float
    slowest: float
    counts: dict[str, int]
    findings: list[AuditFinding]


class OldNewRewards(TypedDict):
    """A mean or a value before and after."""

    old: float | None
    new: float | None


class OldNewCounts(TypedDict):
    """A count before and after."""

    old: int
    new: int


class Disagreement(TypedDict):
    """A rollout that gets another score from the other verifier."""

    id: str
    stage: str
    update: int
    group: int
    row: str
    domain: str
    family: str
    check: str
    reference: Any
    text: str
    old: VerdictRecord
    new: VerdictRecord
    reward: OldNewRewards


class StatusChange(TypedDict):
    """How many verdicts changed from status `old` to `new`, or kept it if the two are equal."""

    old: str
    new: str
    rollouts: int


class ChangedGroups(TypedDict):
    """How many groups would get other advantages: other signs; none instead of some; some instead of none."""

    total: int
    signs_changed: int
    vanished: int
    appeared: int


class RescoredDomain(TypedDict):
    """What the other verifier changes in a domain."""

    rollouts: int
    disagree: int
    statuses: list[StatusChange]
    score: OldNewRewards
    reward: OldNewRewards
    faults: OldNewCounts
    groups: ChangedGroups


class Rescored(TypedDict):
    """What `qwq-rl rescore --json` prints."""

    run: str
    verifier: str
    rollouts: int
    disagree: int
    unfound: int
    domains: dict[str, RescoredDomain]
