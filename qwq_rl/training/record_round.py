"""The rollouts of a round in one file, and what all processes are told of them.

A round's texts and tokens may come to gigabytes, so they go to one process only: every other one writes a part beside
the file, and the main process joins them, works out what the metrics say, asks the rails, and tells the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from qwq_rl.data.row import Row
from qwq_rl.rollouts.rollout import Line, added, summarise_round
from qwq_rl.rollouts.verdict_log import Counts
from qwq_rl.run_folder.files import read_lines, write_lines
from qwq_rl.training.safeguards import Event, LimitReached, Safeguards


@dataclass(frozen=True)
class _Told:
    """What the main process tells the others."""

    summary: Line
    events: list[Event]
    rails: dict[str, Any]
    """Their state after the round."""
    limit: str | None
    """The limit that stops the stage, in words."""


def write_down(
    path: Path,
    lines: Sequence[Line],
    counts: Sequence[Counts],
    sampled: int,
    rails: Safeguards,
    rows: Mapping[str, Row],
) -> tuple[Line, list[Event]]:
    """Write the lines of all processes to `path`, by group and sample; what the metrics say, and the rails' events.

    `lines` and `counts` (of its verifiers' calls) are this process's, `sampled` and `rows` (by id) those of all; every
    process calls it, and sees the folder of `path`. Raises LimitReached in all of them where the rails stop the stage.
    """
    state = PartialState()
    if not state.is_main_process:
        write_lines(_part(path, state.process_index), lines)
    found: list[Any] = gather_object(list(counts))  # and every part is written
    told: list[Any] = [None]
    if state.is_main_process:
        whole = _joined(path, lines, state.num_processes)
        write_lines(path, whole)
        told = [_looked_at(whole, found, sampled, rails, rows)]
    if state.num_processes > 1:
        broadcast_object_list(told)
    said: _Told = told[0]
    if not state.is_main_process:
        rails.load_state_dict(said.rails)
    if said.limit is not None:
        raise LimitReached(said.limit)
    return said.summary, said.events


def _part(path: Path, rank: int) -> Path:
    # Named as a draft, so that what a kill leaves is removed at the next start.
    return path.with_name(f".{path.name}.part.{rank}")


def _joined(path: Path, own: Sequence[Line], world: int) -> list[Line]:
    lines = list(own)
    for rank in range(1, world):
        part = _part(path, rank)
        lines += read_lines(part)
        part.unlink()
    return sorted(lines, key=lambda one: (one["group"], one["sample"]))


def _looked_at(
    lines: Sequence[Line], counts: Sequence[Counts], sampled: int, rails: Safeguards, rows: Mapping[str, Row]
) -> _Told:
    summary = summarise_round(lines) | {"verifiers": added(counts)}
    summary["groups"]["sampled"] = sampled
    events: list[Event] = []
    limit = None
    try:
        events = rails.after_round(summary, lines, rows)
    except LimitReached as reached:
        limit = str(reached)
    return _Told(summary, events, rails.state_dict(), limit)
