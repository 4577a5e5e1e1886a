"""Where a run's time went, read from the clocks of its metrics and of its jobs."""

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


def _stated(line: Line) -> dict[str, float]:
    """The seconds that an update's line states, by part."""
    return {name: finite(value) or 0.0 for name, value in fields(line, "seconds").items()}


@dataclass(frozen=True)
class Stretch:
    """What lies between two moments of a stage: seconds of its clock, and seconds in which that clock stood still."""

    working: float
    paused: float
    evaluated: bool
    """Whether an evaluation was written meanwhile: the stage's clock leaves evaluations out."""


def processes(run: Run, stage: Stage) -> list[Line]:
    """The training processes of a stage that have ended, in order."""
    jobs = [job for job in entries(run.pipeline, "jobs") if at(job, "name") == f"train {stage.name}"]
    return sorted(jobs, key=lambda job: finite(at(job, "started")) or 0.0)


def stretches(run: Run, stage: Stage) -> tuple[Stretch, list[Stretch], Stretch]:
    """Before the first update, between updates, and after the last one."""
    ended = processes(run, stage)
    moments = [(finite(line.get("time")) or 0.0, finite(line.get("wall_seconds")) or 0.0) for line in stage.metrics]
    begin, end = (moments[0][0] - moments[0][1], 0.0), moments[-1]
    if ended:
        begin = (finite(at(ended[0], "started")) or begin[0], 0.0)
        end = (finite(at(ended[-1], "finished")) or end[0], stage.seconds("wall") or end[1])
    moments = [begin, *moments, end]
    found = []
    for (time, wall), (later, more) in pairwise(moments):
        working = max(more - wall, 0.0)
        found.append(Stretch(working, max(later - time - working, 0.0), _evaluated(stage, time, later)))
    return found[0], found[1:-1], found[-1]


def wall_parts(run: Run, stage: Stage) -> dict[str, float]:
    """Wall seconds of a stage's processes by part.

    Generating, scoring and updating are stated by every line of an RL stage. The rest is inferred: before the first
    update and after the last it is the process; where the clock stood still for an evaluation, evaluation.
    """
    if not stage.metrics:
        return {}
    first, inner, tail = stretches(run, stage)
    pauses = [stretch.paused for stretch in inner if stretch.evaluated]
    usual = median(pauses) if pauses else 0.0
    edges = [min(edge.paused, usual) if edge.evaluated else 0.0 for edge in (first, tail)]
    stated = [_stated(line) for line in stage.metrics]
    parts = dict.fromkeys(PARTS, 0.0)
    for name, seconds in (pair for line in stated for pair in line.items()):
        parts[name if name in parts else "other"] += seconds
    working = sum(stretch.working for stretch in inner) - sum(sum(line.values()) for line in stated[1:])
    parts["other" if any(stated) else "update"] += max(working, 0.0)
    parts["evaluation"] += sum(pauses) + sum(edges)
    parts["start and end"] += max(first.working - sum(stated[0].values()), 0.0) + tail.working
    parts["start and end"] += first.paused + tail.paused - sum(edges)
    return parts


def _evaluated(stage: Stage, after: float, until: float) -> bool:
    """Whether an evaluation was written in this stretch of Unix time."""
    return any(after < (finite(line.get("time")) or 0.0) <= until for line in stage.evaluations)


def time_section(run: Run) -> str:
    """Stacked bars by stage, the clocks as a table, and what ran when."""
    bars = []
    for stage in run.stages:
        parts = wall_parts(run, stage)
        if sum(parts.values()):
            named = tuple(
                (part, f"t-{part.replace(' ', '-')}", seconds) for part, seconds in parts.items() if seconds > 0
            )
            bars.append(Bar(stage.name, named, _cpu(run, stage)))
    if not bars:
        return '<p class="note">No stage has written its clocks yet.</p>'
    used = [part for part in PARTS if any(part == name for bar in bars for name, _, _ in bar.parts)]
    key = "".join(f'<span class="key t-{part.replace(" ", "-")}">{part}</span>' for part in used)
    legend = f'Wall time by stage<span class="keys">{key}<span class="key cpu">CPU time</span></span>'
    return (
        f'<figure class="wide"><figcaption>{legend}</figcaption>{stacked_bars(bars, "Wall time by stage")}</figure>'
        '<p class="note">Generation, scoring and updates are measured; evaluation, start, end and the rest '
        f"are inferred from when lines were written. The table counts training alone, without evaluation.</p>"
        f"{_clocks(run.stages)}{_jobs(run)}"
    )


def _jobs(run: Run) -> str:
    found = jobs_of(run)
    chart = job_chart(found, "Jobs of the run over wall time")
    return f'<h3>What ran when</h3><figure class="wide">{chart}</figure>' if found else ""


def _cpu(run: Run, stage: Stage) -> float | None:
    """CPU seconds of the stage's processes, evaluation included; of its training alone where they are unknown."""
    spent = [finite(at(job, "cpu_seconds")) for job in processes(run, stage)]
    known = [seconds for seconds in spent if seconds is not None]
    return sum(known) if known else stage.seconds("cpu")


def _clocks(stages: Sequence[Stage]) -> str:
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
    """The processes of pipeline.json by name, in order of their start, in seconds since the first of them."""
    found: dict[str, list[Line]] = {}
    for job in entries(run.pipeline, "jobs"):
        found.setdefault(str(at(job, "name") or "job"), []).append(job)
    for stage in run.stages:
        if not processes(run, stage):
            found.setdefault(f"train {stage.name}", []).append(stage.entry)
    timed = {name: [entry for entry in listed if _both_ends(entry)] for name, listed in found.items()}
    origin = min((entry["started"] for listed in timed.values() for entry in listed), default=0.0)
    jobs = []
    for name, listed in timed.items():
        spans = tuple(_span(entry, origin) for entry in listed)
        if spans:
            jobs.append(JobBar(name, "train" if name.startswith("train ") else "evaluate", spans))
    return sorted(jobs, key=lambda job: job.spans[0].started)


def _both_ends(entry: Line) -> bool:
    return finite(at(entry, "started")) is not None and finite(at(entry, "finished")) is not None


def _span(entry: Line, origin: float) -> ProcessSpan:
    well = entry.get("status", 0) in (0, "done")
    return ProcessSpan(entry["started"] - origin, entry["finished"] - origin, finite(entry.get("cpu_seconds")), well)
