"""Small SVG charts: intervals inside table cells, one score after each stage, stacked bars, jobs over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwq_rl.report.charts import Frame, pixel, plot, seconds_axis
from qwq_rl.report.markup import at, duration, esc, finite, interval, number, signed


def micro_score(estimate: object, colour: int) -> str:
    """A score 0..1 with its interval on a short rail. Empty if there is no score."""
    mean, low, high = (finite(at(estimate, key)) for key in ("mean", "low", "high"))
    if mean is None:
        return ""
    width = 96.0
    low, high = (mean if end is None else end for end in (low, high))
    bar = f'<path class="bar" d="M{pixel(low * width)} 6H{pixel(high * width)}"/>'
    return _micro(f'<path class="rail" d="M0 6H{pixel(width)}"/>{bar}', mean * width, width, colour, interval(estimate))


def micro_difference(estimate: object, reach: float, colour: int) -> str:
    """A difference with its interval around a zero line. The rail shows values from -`reach` to `reach`."""
    mean, low, high = (finite(at(estimate, key)) for key in ("mean", "low", "high"))
    if mean is None:
        return ""
    width = 120.0

    def x(value: float) -> float:
        return (min(max(value / reach, -1.0), 1.0) + 1) / 2 * width

    rail = f'<path class="rail" d="M0 6H{pixel(width)}"/><path class="zero" d="M{pixel(x(0))} 0v12"/>'
    ends = [pixel(x(mean if end is None else end)) for end in (low, high)]
    bar = f'<path class="bar" d="M{ends[0]} 6H{ends[1]}"/>'
    return _micro(rail + bar, x(mean), width, colour, signed(mean))


def _micro(content: str, x: float, width: float, colour: int, words: str) -> str:
    return (
        f'<svg class="micro c{colour}" viewBox="-4 0 {pixel(width + 8)} 12" width="{pixel(width + 8)}" height="12" '
        f'role="img" aria-label="{esc(words)}">{content}<circle cx="{pixel(x)}" cy="6" r="3"/></svg>'
    )


def steps(estimates: Sequence[tuple[str, object]], colour: int, name: str) -> str:
    """A small chart of one score after each stage: points with their intervals, values and stage names."""
    frame = Frame(320, 150, left=34, right=34, top=26, bottom=24)
    shown = [(label, estimate) for label, estimate in estimates if finite(at(estimate, "mean")) is not None]
    plot_width, plot_height = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    parts, curve = [f'<path class="grid base" d="M0 {pixel(frame.height - frame.bottom)}H{pixel(frame.width)}"/>'], []
    for index, (label, estimate) in enumerate(shown):
        x = frame.left + plot_width * index / max(len(shown) - 1, 1)
        middle = finite(at(estimate, "mean")) or 0.0
        values = [finite(at(estimate, key)) for key in ("mean", "low", "high")]
        mean, low, high = (frame.top + plot_height * (1 - (middle if value is None else value)) for value in values)
        curve.append((x, mean))
        parts.append(f'<path class="whisker" d="M{pixel(x)} {pixel(high)}V{pixel(low)}"/>')
        parts.append(f'<circle cx="{pixel(x)}" cy="{pixel(mean)}" r="4"/>')
        parts.append(f'<text class="value" x="{pixel(x)}" y="{pixel(mean - 10)}">{number(at(estimate, "mean"))}</text>')
        parts.append(f'<text class="tick x" x="{pixel(x)}" y="{pixel(frame.height - 6)}">{esc(label)}</text>')
    path_data = "L".join(f"{pixel(x)} {pixel(y)}" for x, y in curve)
    line_path = f'<path class="line c{colour}" d="M{path_data}"/>' if len(curve) > 1 else ""
    # The line comes after the base line and before the points, which must lie on top of it.
    return plot(f'<g class="steps c{colour}">{parts[0]}{line_path}{"".join(parts[1:])}</g>', frame, name)


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: `parts` `(name, colour class, wall seconds)` end to end, CPU seconds as a line below."""

    label: str
    parts: tuple[tuple[str, str, float], ...]
    cpu: float | None


def stacked_bars(bars: Sequence[Bar], name: str) -> str:
    """Horizontal stacked bars over one axis of seconds, with labels on the left and totals on the right."""
    frame = Frame(1080, 34 + 34 * len(bars), left=200, right=90, top=4, bottom=28)
    longest = max((max(sum(part[2] for part in bar.parts), bar.cpu or 0.0) for bar in bars), default=1.0) or 1.0
    parts, descriptions = [_seconds_grid(longest, frame)], []
    for index, bar in enumerate(bars):
        y, x = frame.top + 34 * index, frame.left
        parts.append(f'<text class="row" x="{pixel(frame.left - 10)}" y="{pixel(y + 18)}">{esc(bar.label)}</text>')
        for part, colour, seconds in bar.parts:
            width = frame.x(seconds / longest) - frame.left
            parts.append(
                f'<rect class="part {colour}" x="{pixel(x)}" y="{pixel(y + 5)}" width="{pixel(width)}" height="17">'
                f"<title>{esc(bar.label)}, {esc(part)}: {duration(seconds)}</title></rect>"
            )
            x += width
        if bar.cpu is not None:
            end = pixel(frame.x(bar.cpu / longest))
            parts.append(f'<path class="cpu" d="M{pixel(frame.left)} {pixel(y + 26)}H{end}"/>')
        total = sum(part[2] for part in bar.parts)
        parts.append(f'<text class="total" x="{pixel(x + 8)}" y="{pixel(y + 18)}">{duration(total)}</text>')
        descriptions.append(f"{bar.label} {duration(total)}")
    return plot("".join(parts), frame, f"{name}: {'; '.join(descriptions)}")


@dataclass(frozen=True)
class ProcessSpan:
    """One process: seconds since the run began, CPU seconds where known, and whether it ended well."""

    started: float
    finished: float
    cpu: float | None
    well: bool


@dataclass(frozen=True)
class JobBar:
    """One row of the job chart: all processes with one name. `kind` is train or evaluate."""

    label: str
    kind: str
    spans: tuple[ProcessSpan, ...]


def job_chart(jobs: Sequence[JobBar], name: str) -> str:
    """What ran when: one row for each job, one bar for each process."""
    frame = Frame(1080, 30 + 24 * len(jobs), left=200, right=90, top=2, bottom=26)
    last = max((span.finished for job in jobs for span in job.spans), default=1.0) or 1.0
    parts = [_seconds_grid(last, frame)]
    for index, job in enumerate(jobs):
        y = frame.top + 24 * index
        parts.append(f'<text class="row" x="{pixel(frame.left - 10)}" y="{pixel(y + 16)}">{esc(job.label)}</text>')
        parts += [_span(job, span, y, frame, last) for span in job.spans]
        end = frame.x(max(span.finished for span in job.spans) / last)
        spent = duration(sum(span.finished - span.started for span in job.spans))
        parts.append(f'<text class="total" x="{pixel(end + 8)}" y="{pixel(y + 16)}">{spent}</text>')
    return plot("".join(parts), frame, name)


def _span(job: JobBar, span: ProcessSpan, y: float, frame: Frame, last: float) -> str:
    left, right = frame.x(span.started / last), frame.x(span.finished / last)
    cpu = "" if span.cpu is None else f", CPU {duration(span.cpu)}"
    tooltip = f"{job.label}: {duration(span.finished - span.started)}{cpu}{'' if span.well else ', did not end well'}"
    # A process that ended at once still gets a visible bar: 2 pixels at least, below.
    kind = job.kind if span.well else "failed"
    return (
        f'<rect class="part {kind}" x="{pixel(left)}" y="{pixel(y + 4)}" rx="2" width="{pixel(max(right - left, 2))}" '
        f'height="16"><title>{esc(tooltip)}</title></rect>'
    )


def _seconds_grid(last: float, frame: Frame) -> str:
    base = pixel(frame.height - frame.bottom)
    parts = [f'<path class="grid base" d="M{pixel(frame.left)} {base}H{pixel(frame.width - frame.right)}"/>']
    for share, label in seconds_axis(last).ticks:
        x = pixel(frame.x(share))
        parts.append(f'<path class="grid" d="M{x} {pixel(frame.top)}V{base}"/>')
        parts.append(f'<text class="tick x" x="{x}" y="{pixel(frame.height - 10)}">{label}</text>')
    return "".join(parts)
