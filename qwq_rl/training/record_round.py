"""Writes the rollouts of a round to one file, and gives their summary to all processes.

The texts and tokens of a round may be gigabytes, so they are not sent between processes. Every other process writes a
part beside the file. The main process joins the parts, computes the summary, asks the safeguards, and sends only the
result to the others.
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
    """What the main process sends to the others."""

    summary: Line
    events: list[Event]
    safeguards: dict[str, Any]
    """Their state after the round."""
    limit: str | None
    """The message of the limit that stops the stage; None if none does."""


def record_round(
    path: Path,
    lines: Sequence[Line],
    counts: Sequence[Counts],
    sampled: int,
    safeguards: Safeguards,
    rows: Mapping[str, Row],
) -> tuple[Line, list[Event]]:
    """Write the lines of all processes to `path`, by group and sample. Returns the summary and the events.

    `lines` and `counts` (of its verifier calls) are those of this process; `sampled` (groups) and `rows` (by id) are
    those of all. Every process must call it, and must see the folder of `path`. Raises LimitReached in all processes if
    the safeguards stop the stage.
    """
    state = PartialState()
    if not state.is_main_process:
        write_lines(_part(path, state.process_index), lines)
    all_counts: list[Any] = gather_object(list(counts))  # waits for all processes, so every part is written
    reports: list[Any] = [None]
    if state.is_main_process:
        all_lines = _all_lines(path, lines, state.num_processes)
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
    # Named like a draft, so that a part left by a kill is removed at the next start.
    return path.with_name(f".{path.name}.part.{rank}")


def _all_lines(path: Path, own: Sequence[Line], world: int) -> list[Line]:
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
