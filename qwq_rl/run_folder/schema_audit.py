"""The schema of what `qwq-rl verify`, its audit and `qwq-rl rescore` write (docs/contracts.md)."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from qwq_rl.run_folder.schema import VerdictRecord


class VerdictLine(VerdictRecord):
    """One line of what `qwq-rl verify` writes."""

    id: str


class AuditFinding(TypedDict):
    """One thing that an audit found wrong with a row, or with what its verifier makes of it."""

    id: str
    place: int
    domain: str | None
    kind: Literal["reference", "solution", "fault", "unstable", "slow", "empty", "garbage", "hedge", "form", "unproven"]
    reason: str


class AuditRecord(TypedDict):
    """The report of an audit; `key` only in `STAGE/audit.json`."""

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
    """A number before and after."""

    old: int
    new: int


class Disagreement(TypedDict):
    """A rollout whose score another verifier changes."""

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
    """How many verdicts went from one status to another, or stayed."""

    old: str
    new: str
    rollouts: int


class ChangedGroups(TypedDict):
    """Groups by what becomes of what they teach."""

    total: int
    signs_changed: int
    vanished: int
    appeared: int


class RescoredDomain(TypedDict):
    """What another verifier changes in a domain."""

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
