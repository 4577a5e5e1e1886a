"""Where a run's time went, read from the clocks of its metrics and of its jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from qwq_rl.report.bars import Bar, Job, job_chart, stacked_bars
from qwq_rl.report.load import Run, Stage
from qwq_rl.report.markup import at, duration, esc, finite, short, table

PARTS = ("generate", "score", "update", "evaluation", "process start", "other")
Line = Mapping[str, Any]


def _stated(line: Line) -> dict[str, float]:
    """The seconds that an update's line states, by part."""
    return {name: finite(value) or 0.0 for name, value in (at(line, "seconds") or {}).items()}


@dataclass(frozen=True)
class Gap:
    """Wall seconds that no line states: before an update or after the last; whether an evaluation was written."""

    seconds: float
    evaluated: bool


def gaps(stage: Stage) -> list[Gap]:
    """The gap before each update of a stage, and the one after its last."""
    found, wall, time = [], 0.0, 0.0
    for line in stage.metrics:
        now, moment = finite(line.get("wall_seconds")) or wall, finite(line.get("time")) or time
        found.append(Gap(max(now - wall - sum(_stated(line).values()), 0.0), _evaluated(stage, time, moment)))
        wall, time = now, moment
    rest = (stage.seconds("wall") or wall) - wall
    return [*found, Gap(max(rest, 0.0), _evaluated(stage, time, math.inf))]


def wall_parts(stage: Stage) -> dict[str, float]:
    """Wall seconds of a stage by part.

    Generating, scoring and updating are stated by every line of an RL stage. The rest is inferred: time before the
    first update is the process start; a gap in which an evaluation was written, beyond the usual gap, is evaluation.
    """
    if not stage.metrics:
        return {}
    first, *inner, tail = gaps(stage)
    plain = [gap.seconds for gap in inner if not gap.evaluated]
    usual = median(plain) if plain else 0.0
    extra = [max(gap.seconds - usual, 0.0) for gap in inner if gap.evaluated]
    at_start = min(mean(extra), first.seconds) if first.evaluated and extra else 0.0
    parts = dict.fromkeys(PARTS, 0.0)
    stated = [pair for line in stage.metrics for pair in _stated(line).items()]
    for name, seconds in stated:
        parts[name if name in parts else "other"] += seconds
    parts["other" if stated else "update"] += sum(gap.seconds for gap in inner) - sum(extra)
    parts["process start"] += first.seconds - at_start
    parts["evaluation"] += sum(extra) + at_start
    parts["evaluation" if tail.evaluated else "other"] += tail.seconds
    return parts


def _evaluated(stage: Stage, after: float, until: float) -> bool:
    """Whether an evaluation was written in this stretch of Unix time."""
    return any(after < (finite(line.get("time")) or 0.0) <= until for line in stage.evaluations)


def time_section(run: Run) -> str:
    """Stacked bars by stage, the clocks as a table, and what ran when."""
    bars = []
    for stage in run.stages:
        parts = wall_parts(stage)
        if sum(parts.values()):
            named = tuple(
                (part, f"t-{part.replace(' ', '-')}", seconds) for part, seconds in parts.items() if seconds > 0
            )
            bars.append(Bar(stage.name, named, stage.seconds("cpu")))
    if not bars:
        return '<p class="note">No stage has written its clocks yet.</p>'
    used = [part for part in PARTS if any(part == name for bar in bars for name, _, _ in bar.parts)]
    key = "".join(f'<span class="key t-{part.replace(" ", "-")}">{part}</span>' for part in used)
    legend = f'Wall time by stage<span class="keys">{key}<span class="key cpu">CPU time</span></span>'
    return (
        f'<figure class="wide"><figcaption>{legend}</figcaption>{stacked_bars(bars, "Wall time by stage")}</figure>'
        '<p class="note">Generation, scoring and updates are measured; evaluation, process start and the rest are '
        f"inferred from when lines were written.</p>{_clocks(run.stages)}{_jobs(run)}"
    )


def _jobs(run: Run) -> str:
    found = jobs_of(run)
    chart = job_chart(found, "Jobs of the run over wall time")
    return f'<h3>What ran when</h3><figure class="wide">{chart}</figure>' if found else ""


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
    return table(head, rows, "Clocks by stage")


def jobs_of(run: Run) -> list[Job]:
    """Stages and jobs of pipeline.json in order of their start, in seconds since the first of them."""
    found = [(stage.name, "train", stage.entry) for stage in run.stages]
    names = {stage.name for stage in run.stages}
    for job in at(run.pipeline, "jobs") or []:
        name = str(at(job, "name") or "job")
        if name not in names and name.removeprefix("train ") not in names:
            found.append((name, "evaluate", job))
    timed = []
    for name, kind, entry in found:
        started, finished = finite(entry.get("started")), finite(entry.get("finished"))
        if started is not None and finished is not None:
            timed.append((name, kind, started, finished, finite(entry.get("cpu_seconds"))))
    origin = min((started for _, _, started, _, _ in timed), default=0.0)
    timed.sort(key=lambda job: job[2])
    return [Job(name, kind, started - origin, finished - origin, cpu) for name, kind, started, finished, cpu in timed]
