"""Line charts as SVG: pure functions from series to a figure with its tooltip data. Colours are classes of page.css."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwq_rl.report.load import Run, Stage
from qwq_rl.report.markup import data_block, esc, finite, short, title


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
class StageSpan:
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

    spans: tuple[StageSpan, ...]
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

    def span(self, stage: str | None) -> StageSpan | None:
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


def _span_ticks(span: StageSpan, width: float) -> list[tuple[float, str]]:
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
    spans: list[StageSpan] = []
    start, updates_before, seconds_before = 0.0, 0, 0.0
    for name in names:
        share = seconds[name] / whole if clock == "cpu" else 1 / len(names)
        spans.append(
            StageSpan(name, start, start + share, updates[name], seconds[name], updates_before, seconds_before)
        )
        start, updates_before, seconds_before = (
            start + share,
            updates_before + updates[name],
            seconds_before + seconds[name],
        )
    return TimeLine(tuple(spans), clock)


@dataclass(frozen=True)
class Point:
    """One value: `x` as a share 0..1 of the axis, `y` with its interval in units, `heading` for the tooltip."""

    x: float
    y: float
    heading: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line or one set of marks; `colour` is 0..7, or 8 for neutral."""

    name: str
    colour: int
    points: tuple[Point, ...]
    style: str = "line"
    """line, dashed, marks, raw (thin), or smooth and smooth dashed (bold, without tooltip)."""
    label: str = ""
    """Written at the right end; nothing where empty."""


@dataclass(frozen=True)
class Frame:
    """Pixels of a chart and of the margins around its plot."""

    width: float
    height: float
    left: float = 38
    right: float = 10
    top: float = 10
    bottom: float = 24

    def x(self, share: float) -> float:
        """Pixel of a share 0..1 of the axis."""
        return self.left + share * (self.width - self.left - self.right)


@dataclass(frozen=True)
class Vertical:
    """The vertical axis: from `low` to `high`, lines at `ticks`."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def y(self, value: float, frame: Frame) -> float:
        """Pixel of a value, held inside the plot."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return frame.height - frame.bottom - share * (frame.height - frame.top - frame.bottom)


UNIT = Vertical(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
"""For shares and scores."""


def fitted(values: Sequence[float], count: int = 3) -> Vertical:
    """A vertical axis that holds the values, from 0 where they are all positive and 0 is not far."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if 0 <= low <= 0.6 * high:
        low = 0.0
    ticks = round_ticks(low, high, count)
    return Vertical(ticks[0], ticks[-1], tuple(ticks))


def pixel(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def path(points: Sequence[tuple[float, float]]) -> str:
    """Path data through pixel points."""
    return "M" + "L".join(f"{pixel(x)} {pixel(y)}" for x, y in points) if points else ""


def line_chart(
    series: Sequence[Series],
    axis: Axis,
    vertical: Vertical,
    frame: Frame,
    name: str,
    note: Callable[[float], str] = short,
) -> str:
    """A chart: bands, grid, intervals, lines, marks, end labels, and the data that page.js shows on hover and keys.

    `name` says in words what is seen; `note` writes a value in the tooltip.
    """
    parts = [_bands(axis.bands, frame), _grid(axis, vertical, frame)]
    parts += [_interval(one, vertical, frame) for one in series if one.style in ("line", "dashed")]
    parts += [_line(one, vertical, frame) for one in series if one.style != "marks"]
    parts += [_marks(one, vertical, frame) for one in series if one.style == "marks"]
    parts.append(_end_labels(series, vertical, frame))
    cursor = f'<line class="cursor" y1="{pixel(frame.top)}" y2="{pixel(frame.height - frame.bottom)}"/>'
    return plot("".join(parts) + cursor, frame, name, _tips(series, vertical, frame, note))


def plot(content: str, frame: Frame, name: str, tips: str = "") -> str:
    """An SVG of the frame's size around `content`; focusable where it has tooltip data."""
    focus = ' tabindex="0" aria-roledescription="chart"' if tips else ""
    role = "group" if tips else "img"
    return (
        f'<div class="plot" role="{role}" aria-label="{esc(name)}"{focus}>'
        f'<svg viewBox="0 0 {pixel(frame.width)} {pixel(frame.height)}" aria-hidden="true">{content}</svg>{tips}</div>'
    )


def _bands(bands: Sequence[Band], frame: Frame) -> str:
    """Shading of every other stage, and their names along the top of the plot."""
    parts = []
    for index, band in enumerate(bands):
        left, right = frame.x(band.start), frame.x(band.end)
        shade = "band odd" if index % 2 else "band"
        height = frame.height - frame.top - frame.bottom
        parts.append(
            f'<rect class="{shade}" x="{pixel(left)}" y="{pixel(frame.top)}" '
            f'width="{pixel(max(right - left, 0))}" height="{pixel(height)}"/>'
        )
        room = int((right - left - 4) / 5.4)
        label = band.label if len(band.label) <= room else band.label[: max(room - 1, 0)] + "…" if room > 3 else ""
        if label:
            middle = pixel((left + right) / 2)
            parts.append(f'<text class="stage" x="{middle}" y="{pixel(frame.top - 5)}">{esc(label)}</text>')
    return "".join(parts)


def _grid(axis: Axis, vertical: Vertical, frame: Frame) -> str:
    """Horizontal lines with their values, and the ticks of the horizontal axis."""
    left, right, base = pixel(frame.left), pixel(frame.width - frame.right), frame.height - frame.bottom
    parts = []
    for tick in vertical.ticks:
        y = vertical.y(tick, frame)
        kind = "grid base" if tick == vertical.ticks[0] else "grid"
        parts.append(f'<path class="{kind}" d="M{left} {pixel(y)}H{right}"/>')
        parts.append(f'<text class="tick y" x="{pixel(frame.left - 6)}" y="{pixel(y + 3.5)}">{short(tick)}</text>')
    for share, label in axis.ticks:
        x = frame.x(share)
        parts.append(f'<path class="notch" d="M{pixel(x)} {pixel(base)}v4"/>')
        parts.append(f'<text class="tick x" x="{pixel(x)}" y="{pixel(base + 15)}">{esc(label)}</text>')
    if axis.title:
        middle = pixel((frame.left + frame.width - frame.right) / 2)
        parts.append(f'<text class="tick x title" x="{middle}" y="{pixel(frame.height - 3)}">{esc(axis.title)}</text>')
    return "".join(parts)


def _interval(series: Series, vertical: Vertical, frame: Frame) -> str:
    known = [(p.x, p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
    if len(known) < 2:
        return ""
    upper = [(frame.x(x), vertical.y(high, frame)) for x, _, high in known]
    lower = [(frame.x(x), vertical.y(low, frame)) for x, low, _ in reversed(known)]
    return f'<path class="interval c{series.colour} {series.style}" d="{path(upper + lower)}Z"/>'


def _line(series: Series, vertical: Vertical, frame: Frame) -> str:
    points = [(frame.x(p.x), vertical.y(p.y, frame)) for p in series.points]
    line = f'<path class="line c{series.colour} {series.style}" d="{path(points)}"/>'
    if len(points) != 1 and (len(points) > 40 or series.style != "line"):
        return line
    dots = "".join(f'<circle cx="{pixel(x)}" cy="{pixel(y)}" r="2.2"/>' for x, y in points)
    return f'{line}<g class="dots c{series.colour}">{dots}</g>'


def _marks(series: Series, vertical: Vertical, frame: Frame) -> str:
    """Diamonds with whiskers."""
    parts = []
    for point in series.points:
        x, y = frame.x(point.x), vertical.y(point.y, frame)
        if point.low is not None and point.high is not None:
            top, bottom = vertical.y(point.high, frame), vertical.y(point.low, frame)
            parts.append(f'<path class="whisker" d="M{pixel(x)} {pixel(top)}V{pixel(bottom)}"/>')
        parts.append(f'<path class="diamond" d="M{pixel(x)} {pixel(y - 5)}l5 5l-5 5l-5-5Z"/>')
    return f'<g class="marks c{series.colour}">{"".join(parts)}</g>'


def _end_labels(series: Sequence[Series], vertical: Vertical, frame: Frame) -> str:
    """Names at the right end of their lines, pushed apart where they would overlap."""
    gap = 14.0
    labelled = [(vertical.y(one.points[-1].y, frame), one) for one in series if one.label and one.points]
    wanted = sorted(labelled, key=lambda pair: pair[0])
    placed: list[float] = []
    for y, _ in wanted:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    limit = frame.height - frame.bottom
    for index in range(len(placed) - 1, -1, -1):
        limit = placed[index] = min(placed[index], limit)
        limit -= gap
    parts = []
    for y, (_, one) in zip(placed, wanted, strict=True):
        x = frame.x(one.points[-1].x) + 9
        parts.append(f'<text class="end c{one.colour}" x="{pixel(x)}" y="{pixel(y + 4)}">{esc(one.label)}</text>')
    return "".join(parts)


def _tips(series: Sequence[Series], vertical: Vertical, frame: Frame, note: Callable[[float], str]) -> str:
    """For every horizontal position: x in pixels, headings, and rows `[name, colour, value, y in pixels]`."""
    columns: dict[float, tuple[list[str], list[list[object]]]] = {}
    for one in series:
        for point in one.points if not one.style.startswith("smooth") else ():
            headings, rows = columns.setdefault(round(frame.x(point.x), 1), ([], []))
            if point.heading not in headings:
                headings.append(point.heading)
            value = note(point.y)
            if point.low is not None and point.high is not None:
                value += f" [{note(point.low)}, {note(point.high)}]"
            rows.append([one.name, one.colour, value, round(vertical.y(point.y, frame), 1)])
    data = [[x, " · ".join(columns[x][0]), columns[x][1]] for x in sorted(columns)]
    return data_block(data) if data else ""
