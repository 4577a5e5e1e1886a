"""The rollouts of a round in one file, and what all processes are told of them.

A round's texts and tokens may come to gigabytes, so they go to one process only: every other one writes a part beside
the file, and the main process joins them, works out what the metrics say, asks the safeguards, and tells the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from qwq_rl.rollouts.rollout import added, summarise_round
from qwq_rl.run_folder.files import read_lines, write_lines
from qwq_rl.training.safeguards import Event, LimitReached, Safeguards

if TYPE_CHECKING:
    from qwq_rl.data.row import Row
    from qwq_rl.rollouts.rollout import Line
    from qwq_rl.rollouts.verdict_log import Counts


@dataclass(frozen=True)
class _RoundReport:
    """What the main process tells the others."""

    summary: Line
    events: list[Event]
    safeguards: dict[str, Any]
    """Their state after the round."""
    limit: str | None
    """The limit that stops the stage, in words."""


def record_round(
    path: Path,
    lines: Sequence[Line],
    counts: Sequence[Counts],
    sampled: int,
    safeguards: Safeguards,
    rows: Mapping[str, Row],
) -> tuple[Line, list[Event]]:
    """Write the lines of all processes to `path`, by group and sample; what the metrics say, and the events.

    `lines` and `counts` (of its verifiers' calls) are this process's, `sampled` and `rows` (by id) those of all; every
    process calls it, and sees the folder of `path`. Raises LimitReached in all of them where the safeguards stop the
    stage.
    """
    state = PartialState()
    if not state.is_main_process:
        write_lines(_part(path, state.process_index), lines)
    all_counts: list[Any] = gather_object(list(counts))  # and every part is written
    reports: list[Any] = [None]
    if state.is_main_process:
        all_lines = _joined(path, lines, state.num_processes)
        write_lines(path, all_lines)
        reports = [_report(all_lines, all_counts, sampled, safeguards, rows)]
    if state.num_processes > 1:
        broadcast_object_list(reports)
    report: _RoundReport = reports[0]
    if not state.is_main_process:
        safeguards.load_state_dict(report.safeguards)
    if report.limit is not None:
        raise LimitReached(report.limit)
    return report.summary, report.events


def _part(path: Path, rank: int) -> Path:
    # Named as a draft, so that what a kill leaves is removed at the next start.
    return path.with_name(f".{path.name}.part.{rank}")


def _joined(path: Path, own: Sequence[Line], world: int) -> list[Line]:
    lines = list(own)
    for rank in range(1, world):
        part = _part(path, rank)
        lines += read_lines(part)
        part.unlink()
    return sorted(lines, key=lambda line: (line["group"], line["sample"]))


def _report(
    lines: Sequence[Line], counts: Sequence[Counts], sampled: int, safeguards: Safeguards, rows: Mapping[str, Row]
) -> _RoundReport:
    summary = summarise_round(lines) | {"verifiers": added(counts)}
    summary["groups"]["sampled"] = sampled
    events: list[Event] = []
    limit = None
    try:
        events = safeguards.after_round(summary, lines, rows)
    except LimitReached as reached:
        limit = str(reached)
    return _RoundReport(summary, events, safeguards.state_dict(), limit)
