"""Where the time of a run went, from the clocks in its metrics and in its jobs (pipeline.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from qwq_rl.report.bars import Bar, JobBar, ProcessSpan, job_chart, stacked_bars
from qwq_rl.report.load import Run, Stage
from qwq_rl.report.markup import at, duration, entries, esc, fields, finite, short, table

PARTS = ("generate", "score", "update", "evaluation", "start and end", "other")
Line = Mapping[str, Any]


def _stated_seconds(line: Line) -> dict[str, float]:
    """Part -> seconds, as the metrics line of an update states them."""
    return {name: finite(value) or 0.0 for name, value in fields(line, "seconds").items()}


@dataclass(frozen=True)
class Stretch:
    """The time between two moments of a stage: seconds in which the stage's clock ran, and in which it stood still."""

    working: float
    paused: float
    evaluated: bool
    """Whether an evaluation was written in this time. The clock of the stage stands still during evaluations."""


def processes(run: Run, stage: Stage) -> list[Line]:
    """The training processes of a stage that have ended, in order."""
    jobs = [job for job in entries(run.pipeline, "jobs") if at(job, "name") == f"train {stage.name}"]
    return sorted(jobs, key=lambda job: finite(at(job, "started")) or 0.0)


def stretches(run: Run, stage: Stage) -> tuple[Stretch, list[Stretch], Stretch]:
    """Return the stretch before the first update, those between updates, and the one after the last."""
    jobs = processes(run, stage)
    moments = [(finite(line.get("time")) or 0.0, finite(line.get("wall_seconds")) or 0.0) for line in stage.metrics]
    # Without jobs, assume that the stage began when its clock did and ended with its last line.
    begin, end = (moments[0][0] - moments[0][1], 0.0), moments[-1]
    if jobs:
        begin = (finite(at(jobs[0], "started")) or begin[0], 0.0)
        end = (finite(at(jobs[-1], "finished")) or end[0], stage.seconds("wall") or end[1])
    moments = [begin, *moments, end]
    between = []
    for (time, wall), (next_time, next_wall) in pairwise(moments):
        working = max(next_wall - wall, 0.0)
        between.append(Stretch(working, max(next_time - time - working, 0.0), _evaluated(stage, time, next_time)))
    return between[0], between[1:-1], between[-1]


def wall_parts(run: Run, stage: Stage) -> dict[str, float]:
    """Part -> wall seconds of a stage's processes.

    Every metrics line of an RL stage states the seconds of generating, scoring and updating. The rest is inferred: time
    before the first update and after the last is start and end of the process; time in which the clock stood still and
    an evaluation was written is evaluation.
    """
    if not stage.metrics:
        return {}
    first, inner, last = stretches(run, stage)
    pauses = [stretch.paused for stretch in inner if stretch.evaluated]
    usual_pause = median(pauses) if pauses else 0.0
    # Start and end may hold an evaluation too; it is taken to be as long as the usual one between updates.
    edge_evaluations = [min(edge.paused, usual_pause) if edge.evaluated else 0.0 for edge in (first, last)]
    stated = [_stated_seconds(line) for line in stage.metrics]
    parts = dict.fromkeys(PARTS, 0.0)
    for name, seconds in (item for line in stated for item in line.items()):
        parts[name if name in parts else "other"] += seconds
    # The first line's seconds belong to the stretch before the first update, so they are left out here.
    working = sum(stretch.working for stretch in inner) - sum(sum(line.values()) for line in stated[1:])
    parts["other" if any(stated) else "update"] += max(working, 0.0)
    parts["evaluation"] += sum(pauses) + sum(edge_evaluations)
    parts["start and end"] += max(first.working - sum(stated[0].values()), 0.0) + last.working
    parts["start and end"] += first.paused + last.paused - sum(edge_evaluations)
    return parts


def _evaluated(stage: Stage, after: float, until: float) -> bool:
    """Whether an evaluation was written in this stretch of Unix time."""
    return any(after < (finite(line.get("time")) or 0.0) <= until for line in stage.evaluations)


def time_section(run: Run) -> str:
    """The time of a run: stacked bars by stage, a table of the clocks, and a chart of what ran when."""
    bars = []
    for stage in run.stages:
        parts = wall_parts(run, stage)
        if sum(parts.values()):
            bar_parts = tuple(
                (part, f"t-{part.replace(' ', '-')}", seconds) for part, seconds in parts.items() if seconds > 0
            )
            bars.append(Bar(stage.name, bar_parts, _cpu_seconds(run, stage)))
    if not bars:
        return '<p class="note">No stage has written its clocks yet.</p>'
    used = [part for part in PARTS if any(part == name for bar in bars for name, _, _ in bar.parts)]
    legend_entries = "".join(f'<span class="key t-{part.replace(" ", "-")}">{part}</span>' for part in used)
    legend = f'Wall time by stage<span class="keys">{legend_entries}<span class="key cpu">CPU time</span></span>'
    return (
        f'<figure class="wide"><figcaption>{legend}</figcaption>{stacked_bars(bars, "Wall time by stage")}</figure>'
        '<p class="note">Generation, scoring and updates are measured; evaluation, start, end and the rest '
        f"are inferred from when lines were written. The table counts training alone, without evaluation.</p>"
        f"{_clock_table(run.stages)}{_job_figure(run)}"
    )


def _job_figure(run: Run) -> str:
    jobs = jobs_of(run)
    chart = job_chart(jobs, "Jobs of the run over wall time")
    return f'<h3>What ran when</h3><figure class="wide">{chart}</figure>' if jobs else ""


def _cpu_seconds(run: Run, stage: Stage) -> float | None:
    """CPU seconds of the stage's processes, with evaluation; if they are unknown, those of its training alone."""
    spent = [finite(at(job, "cpu_seconds")) for job in processes(run, stage)]
    measured = [seconds for seconds in spent if seconds is not None]
    return sum(measured) if measured else stage.seconds("cpu")


def _clock_table(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        wall, cpu = stage.seconds("wall"), stage.seconds("cpu")
        samples = finite(stage.metrics[-1].get("samples")) if stage.metrics else None
        share = f"{cpu / wall:.2f}" if wall and cpu is not None else "–"
        pace = f"{wall / stage.updates:.2f} s" if wall and stage.updates else "–"
        name = f"<code>{esc(stage.name)}</code>"
        clocks = (duration(wall), duration(cpu), share)
        rows.append([name, esc(stage.status), *clocks, str(stage.updates), short(samples), pace])
    head = ["stage", "status", "wall", "CPU", "CPU / wall", "updates", "samples", "wall an update"]
    return table(head, rows, "Training by stage")


def jobs_of(run: Run) -> list[JobBar]:
    """Return the processes of pipeline.json, grouped by name, in order of start, in seconds since the first start.

    A stage whose processes are not recorded gets one bar from its own entry.
    """
    by_name: dict[str, list[Line]] = {}
    for job in entries(run.pipeline, "jobs"):
        by_name.setdefault(str(at(job, "name") or "job"), []).append(job)
    for stage in run.stages:
        if not processes(run, stage):
            by_name.setdefault(f"train {stage.name}", []).append(stage.entry)
    timed = {name: [entry for entry in job_entries if _both_ends(entry)] for name, job_entries in by_name.items()}
    origin = min((entry["started"] for job_entries in timed.values() for entry in job_entries), default=0.0)
    jobs = []
    for name, job_entries in timed.items():
        spans = tuple(_span(entry, origin) for entry in job_entries)
        if spans:
            jobs.append(JobBar(name, "train" if name.startswith("train ") else "evaluate", spans))
    return sorted(jobs, key=lambda job: job.spans[0].started)


def _both_ends(entry: Line) -> bool:
    return finite(at(entry, "started")) is not None and finite(at(entry, "finished")) is not None


def _span(entry: Line, origin: float) -> ProcessSpan:
    well = entry.get("status", 0) in (0, "done")
    return ProcessSpan(entry["started"] - origin, entry["finished"] - origin, finite(entry.get("cpu_seconds")), well)
