"""Line charts as SVG: axes, the time line of all stages, and `line_chart`, which draws series and their tooltip data.

Pure functions. Colours are classes of page.css.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwq_rl.report.load import Run, Stage
from qwq_rl.report.markup import data_block, esc, finite, short, title


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers; the first is at most `low`, the last at least `high`."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    raw_step = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw_step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass(frozen=True)
class Band:
    """A part of a horizontal axis with a name; `start` and `end` are shares 0..1 of its width."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: `ticks` are (share 0..1 of its width, label), `bands` are shaded behind the chart."""

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
    """One stage on a time line: `start` and `end` as shares 0..1, and the updates and CPU seconds it covers."""

    stage: str
    start: float
    end: float
    updates: int
    seconds: float
    updates_before: int
    seconds_before: float


@dataclass(frozen=True)
class TimeLine:
    """The stages of a run one after another: by updates (all stages equally wide) or by CPU seconds (to scale)."""

    spans: tuple[StageSpan, ...]
    clock: str
    """updates or cpu."""

    def place(self, stage: str, line: Mapping[str, Any]) -> float | None:
        """Return where an evaluation line of a stage lies, as a share 0..1; None if the stage is not shown."""
        span = self.span(stage)
        if span is None:
            return None
        position, length = finite(line.get("update")), float(span.updates)
        if self.clock == "cpu":
            position, length = finite(line.get("cpu_seconds")), span.seconds
        return None if position is None else span.start + (span.end - span.start) * min(position / (length or 1), 1.0)

    def span(self, stage: str | None) -> StageSpan | None:
        """The span of one stage, or None."""
        return next((span for span in self.spans if span.stage == stage), None)

    def heading(self, stage: str, update: int) -> str:
        """The title of a tooltip: the stage, its update, and the update counted over all stages."""
        span = self.span(stage)
        if span is None or not span.updates_before:
            return f"{title(stage)}, update {update}"
        return f"{title(stage)}, update {update} ({span.updates_before + update} in all)"

    def axis(self, width: float) -> Axis:
        """Return ticks and bands; `width` in pixels limits how many ticks fit."""
        bands = tuple(Band(span.start, span.end, title(span.stage)) for span in self.spans)
        if self.clock == "cpu":
            length = self.spans[-1].seconds_before + self.spans[-1].seconds if self.spans else 1.0
            plain = plain_axis(length, "CPU seconds of training, cumulative", max(2, int(width // 130)))
            return Axis(plain.ticks, bands, plain.title)
        ticks = [tick for span in self.spans for tick in _span_ticks(span, width)]
        return Axis(tuple(ticks), bands, "updates within each stage")


def _span_ticks(span: StageSpan, width: float) -> list[tuple[float, str]]:
    """Ticks at round updates inside the span and at its last one. At its start only the first span has a tick."""
    share = span.end - span.start
    round_updates = round_ticks(0, span.updates, max(1, int(width * share // 70)))
    # A label needs about 30 pixels: no tick that near the ends of the span.
    room = 30 / (width * share or 1) * span.updates
    kept = [tick for tick in round_updates if room < tick < span.updates - room]
    values = ([0.0] if span.start == 0 else []) + kept + [float(span.updates)]
    return [(span.start + share * value / (span.updates or 1), short(value)) for value in values]


def seconds_axis(last: float) -> Axis:
    """An axis of seconds from 0 to `last`, with round ticks in the largest unit that fits at least three times."""
    unit, name = next(
        (
            (unit_seconds, unit_name)
            for unit_seconds, unit_name in ((86400, "d"), (3600, "h"), (60, "min"))
            if last >= 3 * unit_seconds
        ),
        (1, "s"),
    )
    ticks = [tick for tick in round_ticks(0, last / unit, 6) if tick * unit <= last]
    return Axis(tuple((tick * unit / last, f"{short(tick)} {name}" if tick else "0") for tick in ticks), (), "")


def seconds_of(stage: Stage) -> float:
    """The CPU seconds that the stage's own clock reached, in its metrics and evaluations."""
    return max((finite(line.get("cpu_seconds")) or 0.0 for line in (*stage.metrics, *stage.evaluations)), default=0.0)


def time_line(runs: Sequence[Run], clock: str) -> TimeLine:
    """Return one time line for all runs: every stage of any run, each as long as in the run where it is longest."""
    names = list(dict.fromkeys(stage.name for run in runs for stage in run.line))
    updates, seconds = {}, {}
    for name in names:
        stages = [stage for run in runs for stage in run.line if stage.name == name]
        updates[name] = max(stage.updates for stage in stages)
        seconds[name] = max(seconds_of(stage) for stage in stages)
    all_seconds = sum(seconds.values()) or 1.0
    spans: list[StageSpan] = []
    start, updates_before, seconds_before = 0.0, 0, 0.0
    for name in names:
        share = seconds[name] / all_seconds if clock == "cpu" else 1 / len(names)
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
    """One value: `x` is a share 0..1 of the axis, `y`, `low` and `high` are in units, `heading` is for the tooltip."""

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
    """line, dashed, seed (thin), marks, raw (thin), or smooth and smooth dashed (bold, without tooltip)."""
    label: str = ""
    """Text at the right end of the line; empty for none."""


@dataclass(frozen=True)
class Frame:
    """The size of a chart and of the margins around its plot, in pixels."""

    width: float
    height: float
    left: float = 38
    right: float = 10
    top: float = 10
    bottom: float = 24

    def x(self, share: float) -> float:
        """The pixel of a share 0..1 of the axis."""
        return self.left + share * (self.width - self.left - self.right)


@dataclass(frozen=True)
class Vertical:
    """A vertical axis from `low` to `high` with lines at `ticks`."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def y(self, value: float, frame: Frame) -> float:
        """The pixel of a value; a value outside the axis is drawn at its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return frame.height - frame.bottom - share * (frame.height - frame.top - frame.bottom)


UNIT = Vertical(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
"""For shares and scores."""


def fitted(values: Sequence[float], count: int = 3) -> Vertical:
    """Return a vertical axis that holds all values. It begins at 0 if they are not negative and not far from 0."""
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
    """Draw a chart: bands, grid, intervals, lines, marks, end labels, and the tooltip data for page.js.

    `name` describes the chart in words; `note` formats a value in the tooltip.
    """
    parts = [_bands(axis.bands, frame), _grid(axis, vertical, frame)]
    # What is drawn later covers what is drawn before.
    parts += [_interval(curve, vertical, frame) for curve in series if curve.style in ("line", "dashed")]
    parts += [_line(curve, vertical, frame) for curve in series if curve.style != "marks"]
    parts += [_marks(curve, vertical, frame) for curve in series if curve.style == "marks"]
    parts.append(_end_labels(series, vertical, frame))
    cursor = f'<line class="cursor" y1="{pixel(frame.top)}" y2="{pixel(frame.height - frame.bottom)}"/>'
    return plot("".join(parts) + cursor, frame, name, _tips(series, vertical, frame, note))


def plot(content: str, frame: Frame, name: str, tips: str = "") -> str:
    """Return an SVG of the frame's size around `content`; keys can focus it if it has tooltip data."""
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
        # A character of the label is about 5.4 pixels wide.
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
    bounds = [
        (point.x, point.low, point.high) for point in series.points if point.low is not None and point.high is not None
    ]
    if len(bounds) < 2:
        return ""
    # One closed path: along the upper limits, then back along the lower ones.
    upper = [(frame.x(x), vertical.y(high, frame)) for x, _, high in bounds]
    lower = [(frame.x(x), vertical.y(low, frame)) for x, low, _ in reversed(bounds)]
    return f'<path class="interval c{series.colour} {series.style}" d="{path(upper + lower)}Z"/>'


def _line(series: Series, vertical: Vertical, frame: Frame) -> str:
    points = [(frame.x(point.x), vertical.y(point.y, frame)) for point in series.points]
    line = f'<path class="line c{series.colour} {series.style}" d="{path(points)}"/>'
    if len(points) != 1 and (len(points) > 40 or series.style != "line"):
        return line
    # Dots only on lines of few points, and on a single point, which would otherwise be invisible.
    dots = "".join(f'<circle cx="{pixel(x)}" cy="{pixel(y)}" r="2.2"/>' for x, y in points)
    return f'{line}<g class="dots c{series.colour}">{dots}</g>'


def _marks(series: Series, vertical: Vertical, frame: Frame) -> str:
    """Diamonds with vertical lines for their intervals."""
    parts = []
    for point in series.points:
        x, y = frame.x(point.x), vertical.y(point.y, frame)
        if point.low is not None and point.high is not None:
            top, bottom = vertical.y(point.high, frame), vertical.y(point.low, frame)
            parts.append(f'<path class="whisker" d="M{pixel(x)} {pixel(top)}V{pixel(bottom)}"/>')
        parts.append(f'<path class="diamond" d="M{pixel(x)} {pixel(y - 5)}l5 5l-5 5l-5-5Z"/>')
    return f'<g class="marks c{series.colour}">{"".join(parts)}</g>'


def _end_labels(series: Sequence[Series], vertical: Vertical, frame: Frame) -> str:
    """Write the labels at the right ends of their lines, moved apart where they would overlap."""
    gap = 14.0
    labelled = [(vertical.y(curve.points[-1].y, frame), curve) for curve in series if curve.label and curve.points]
    by_height = sorted(labelled, key=lambda pair: pair[0])
    # First push down from the top, then push up from the bottom what no longer fits.
    placed: list[float] = []
    for y, _ in by_height:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    limit = frame.height - frame.bottom
    for index in range(len(placed) - 1, -1, -1):
        limit = placed[index] = min(placed[index], limit)
        limit -= gap
    parts = []
    for y, (_, curve) in zip(placed, by_height, strict=True):
        x = frame.x(curve.points[-1].x) + 9
        parts.append(f'<text class="end c{curve.colour}" x="{pixel(x)}" y="{pixel(y + 4)}">{esc(curve.label)}</text>')
    return "".join(parts)


def _tips(series: Sequence[Series], vertical: Vertical, frame: Frame, note: Callable[[float], str]) -> str:
    """The tooltip data: for every x in pixels its headings and its rows `[name, colour, value, y in pixels]`."""
    columns: dict[float, tuple[list[str], list[list[object]]]] = {}
    for curve in series:
        for point in curve.points if not curve.style.startswith("smooth") else ():
            headings, rows = columns.setdefault(round(frame.x(point.x), 1), ([], []))
            if point.heading not in headings:
                headings.append(point.heading)
            value = note(point.y)
            if point.low is not None and point.high is not None:
                value += f" [{note(point.low)}, {note(point.high)}]"
            rows.append([curve.name, curve.colour, value, round(vertical.y(point.y, frame), 1)])
    data = [[x, " · ".join(columns[x][0]), columns[x][1]] for x in sorted(columns)]
    return data_block(data) if data else ""
