"""Axes: round ticks, and time lines that lay the stages of a run end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwq_rl.report.load import Run, Stage
from qwq_rl.report.markup import finite, short, title


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    raw = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass(frozen=True)
class Band:
    """A stretch of a horizontal axis, as shares 0..1 of its width."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: labelled positions as shares 0..1 of its width, and bands behind the chart."""

    ticks: tuple[tuple[float, str], ...]
    bands: tuple[Band, ...]
    title: str


def bare(axis: Axis) -> Axis:
    """The axis without its title."""
    return replace(axis, title="")


def plain_axis(last: float, name: str, count: int = 4) -> Axis:
    """An axis from 0 to `last` with round ticks."""
    last = last or 1
    ticks = [tick for tick in round_ticks(0, last, count) if tick <= last * 1.0001]
    return Axis(tuple((tick / last, short(tick)) for tick in ticks), (), name)


@dataclass(frozen=True)
class Span:
    """One stage on a time line: its place, and how many updates and CPU seconds it covers."""

    stage: str
    start: float
    end: float
    updates: int
    seconds: float
    updates_before: int
    seconds_before: float


@dataclass(frozen=True)
class TimeLine:
    """The stages of a run end to end, either by updates (every stage equally wide) or by CPU seconds (to scale)."""

    spans: tuple[Span, ...]
    clock: str
    """updates or cpu."""

    def place(self, stage: str, line: Mapping[str, Any]) -> float | None:
        """Where an evaluation line of a stage lies, as a share 0..1; None off the line."""
        span = self.span(stage)
        if span is None:
            return None
        done, whole = finite(line.get("update")), float(span.updates)
        if self.clock == "cpu":
            done, whole = finite(line.get("cpu_seconds")), span.seconds
        return None if done is None else span.start + (span.end - span.start) * min(done / (whole or 1), 1.0)

    def span(self, stage: str | None) -> Span | None:
        """The stretch of one stage."""
        return next((span for span in self.spans if span.stage == stage), None)

    def heading(self, stage: str, update: int) -> str:
        """What a tooltip says of a point: the stage, its update, and the update counted over all stages."""
        span = self.span(stage)
        if span is None or not span.updates_before:
            return f"{title(stage)}, update {update}"
        return f"{title(stage)}, update {update} ({span.updates_before + update} in all)"

    def axis(self, width: float) -> Axis:
        """Ticks and bands; `width` in pixels bounds how many ticks fit."""
        bands = tuple(Band(span.start, span.end, title(span.stage)) for span in self.spans)
        if self.clock == "cpu":
            whole = self.spans[-1].seconds_before + self.spans[-1].seconds if self.spans else 1.0
            plain = plain_axis(whole, "CPU seconds of training, cumulative", max(2, int(width // 130)))
            return Axis(plain.ticks, bands, plain.title)
        ticks = [tick for span in self.spans for tick in _span_ticks(span, width)]
        return Axis(tuple(ticks), bands, "updates within each stage")


def _span_ticks(span: Span, width: float) -> list[tuple[float, str]]:
    """Round updates inside the span and its last one; the start only of the first span, where no other ends."""
    share = span.end - span.start
    inner = round_ticks(0, span.updates, max(1, int(width * share // 70)))
    room = 30 / (width * share or 1) * span.updates
    kept = [tick for tick in inner if room < tick < span.updates - room]
    values = ([0.0] if span.start == 0 else []) + kept + [float(span.updates)]
    return [(span.start + share * value / (span.updates or 1), short(value)) for value in values]


def seconds_axis(last: float) -> Axis:
    """An axis of seconds from 0 to `last`, its ticks round in whichever unit fits."""
    unit, name = next(((u, n) for u, n in ((86400, "d"), (3600, "h"), (60, "min")) if last >= 3 * u), (1, "s"))
    ticks = [tick for tick in round_ticks(0, last / unit, 6) if tick * unit <= last]
    return Axis(tuple((tick * unit / last, f"{short(tick)} {name}" if tick else "0") for tick in ticks), (), "")


def seconds_of(stage: Stage) -> float:
    """CPU seconds that a stage's own clock reached (the clock of its metrics and evaluations)."""
    return max((finite(line.get("cpu_seconds")) or 0.0 for line in (*stage.metrics, *stage.evaluations)), default=0.0)


def time_line(runs: Sequence[Run], clock: str) -> TimeLine:
    """The time line that holds every run: the stages of all, each as long as in the longest of them."""
    names = list(dict.fromkeys(stage.name for run in runs for stage in run.line))
    updates, seconds = {}, {}
    for name in names:
        stages = [stage for run in runs for stage in run.line if stage.name == name]
        updates[name] = max(stage.updates for stage in stages)
        seconds[name] = max(seconds_of(stage) for stage in stages)
    whole = sum(seconds.values()) or 1.0
    spans: list[Span] = []
    start, updates_before, seconds_before = 0.0, 0, 0.0
    for name in names:
        share = seconds[name] / whole if clock == "cpu" else 1 / len(names)
        spans.append(Span(name, start, start + share, updates[name], seconds[name], updates_before, seconds_before))
        start, updates_before, seconds_before = (
            start + share,
            updates_before + updates[name],
            seconds_before + seconds[name],
        )
    return TimeLine(tuple(spans), clock)
