"""Line charts as SVG: pure functions from series to a figure with its tooltip data. Colours are classes of page.css."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwq_rl.report.markup import data_block, esc, short
from qwq_rl.report.scales import Axis, Band, round_ticks


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
