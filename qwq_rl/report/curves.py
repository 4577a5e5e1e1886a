"""Learning curves: held-out scores over the whole time line, by domain, by family and by mode of answering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from qwq_rl.report.charts import UNIT, Frame, Point, Series, TimeLine, Vertical, bare, line_chart, seconds_of, time_line
from qwq_rl.report.load import Run, Stage, domains, families
from qwq_rl.report.markup import at, esc, finite, folded, interval, listed, number, table, title, whole

SMALL = Vertical(0.0, 1.0, (0.0, 0.5, 1.0))


def colour_of(area: str, order: Sequence[str]) -> int:
    """The colour class of a domain, or of a family's domain."""
    domain = area.split("/")[0]
    return order.index(domain) % 8 if domain in order else 8


def _point(line: Mapping[str, Any], kind: str, area: str, x: float | None, heading: str) -> Point | None:
    estimate = at(line, kind, area, "sampled")
    middle = finite(at(estimate, "mean"))
    if middle is None or x is None:
        return None
    return Point(x, middle, heading, finite(at(estimate, "low")), finite(at(estimate, "high")))


def held_out(run: Run, clock: TimeLine, kind: str, area: str) -> tuple[Point, ...]:
    """The evaluations during the stages of the line; `kind` is domains or families."""
    points = []
    for stage in run.line:
        for line in stage.evaluations:
            heading = clock.heading(stage.name, whole(line.get("update")))
            points.append(_point(line, kind, area, clock.place(stage.name, line), heading))
    return tuple(point for point in points if point)


def final_marks(run: Run, clock: TimeLine, kind: str, area: str) -> tuple[Point, ...]:
    """The primary set's scores, at the end of each stage of the line."""
    points = []
    for stage in run.line:
        span = clock.span(stage.name)
        record = stage.finals.get(run.primary or "")
        if span and record:
            points.append(_point(record, kind, area, span.end, f"after {title(stage.name)}"))
    return tuple(point for point in points if point)


def control_curve(run: Run, clock: TimeLine, kind: str, area: str) -> tuple[Point, ...]:
    """The control beside its stage, placed by CPU time on both clocks: its updates are of another kind."""
    span = clock.span(run.control_of)
    stage = run.stage(run.control_of)
    if run.control is None or span is None or stage is None:
        return ()
    whole = max(seconds_of(run.control), seconds_of(stage)) or 1.0
    points = []
    for line in run.control.evaluations:
        seconds = finite(line.get("cpu_seconds"))
        x = None if seconds is None else span.start + (span.end - span.start) * min(seconds / whole, 1.0)
        points.append(_point(line, kind, area, x, f"control, {seconds or 0:.0f} CPU s"))
    record = run.control.finals.get(run.primary or "")
    if record and not points:
        points.append(_point(record, kind, area, span.end, "control, at its end"))
    return tuple(point for point in points if point)


def _area_series(run: Run, clock: TimeLine, kind: str, area: str, colour: int, label: bool) -> list[Series]:
    name = area if kind == "domains" else "held out"
    line = held_out(run, clock, kind, area)
    marks, control = final_marks(run, clock, kind, area), control_curve(run, clock, kind, area)
    last = (marks or line or control)[-1:]
    text = f"{area} {number(last[0].y)}" if label and last else ""
    found = [
        Series(name, colour, line, "line", text),
        Series(f"control, {area}" if kind == "domains" else "control", colour, control, "dashed"),
        Series(
            f"{name}, final set" if kind == "domains" else "final set", colour, marks, "marks", "" if line else text
        ),
    ]
    return [series for series in found if series.points]


def _overlaid(runs: Sequence[Run], clock: TimeLine, kind: str, area: str, colour: int, label: str) -> list[Series]:
    """One line a run, the first one solid and the second dashed."""
    found = []
    for index, run in enumerate(runs):
        points = held_out(run, clock, kind, area) or final_marks(run, clock, kind, area)
        found.append(
            Series(f"{area}, {run.name}", colour, points, "dashed" if index else "line", "" if index else label)
        )
    return [series for series in found if series.points]


def _together(runs: Sequence[Run], clock: TimeLine, kind: str, area: str, colour: int, label: str) -> list[Series]:
    """A thin line a seed, and their mean wherever all of them were evaluated at the same update."""
    each = [Series(f"{area}, {run.name}", colour, held_out(run, clock, kind, area), "seed") for run in runs]
    met: dict[str, list[Point]] = {}
    for series in each:
        for point in series.points:
            met.setdefault(point.heading, []).append(point)
    whole = {heading: points for heading, points in met.items() if len(points) == len(runs)}
    middle = tuple(
        Point(mean(point.x for point in points), mean(point.y for point in points), heading)
        for heading, points in whole.items()
    )
    return [series for series in (*each, Series(f"{area}, mean", colour, middle, "line", label)) if series.points]


def series_of(
    runs: Sequence[Run], clock: TimeLine, kind: str, area: str, order: Sequence[str], label: bool, seeds: bool
) -> list[Series]:
    """Everything drawn for one area: a run with its control and final marks, runs overlaid, or seeds and their mean."""
    colour = colour_of(area, order)
    if len(runs) == 1:
        return _area_series(runs[0], clock, kind, area, colour, label)
    return (_together if seeds else _overlaid)(runs, clock, kind, area, colour, area if label else "")


def _both(draw: Callable[[str], str]) -> str:
    """The same chart over updates and over CPU seconds; page.js shows one of them."""
    return "".join(f'<div data-axis="{clock}">{draw(clock)}</div>' for clock in ("updates", "cpu"))


def domain_chart(runs: Sequence[Run], seeds: bool = False) -> str:
    """The large chart: every domain, all stages."""
    order = domains(runs)
    frame = Frame(1080, 400, left=40, right=118, top=26, bottom=44)

    def draw(clock: str) -> str:
        line = time_line(runs, clock)
        series = [one for area in order for one in series_of(runs, line, "domains", area, order, True, seeds)]
        axis = line.axis(frame.width - frame.left - frame.right)
        return line_chart(series, axis, UNIT, frame, f"Held-out pass@1 of {listed(order)} over all stages", number)

    return f'<figure class="wide">{_both(draw)}{_domain_table(runs, order)}</figure>'


def family_charts(runs: Sequence[Run], seeds: bool = False) -> str:
    """Small multiples: one chart a family, on the same axes."""
    order, frame = domains(runs), Frame(262, 164, left=28, right=10, top=20, bottom=22)
    figures = []
    for area in families(runs):

        def draw(clock: str, area: str = area) -> str:
            line = time_line(runs, clock)
            series = series_of(runs, line, "families", area, order, False, seeds)
            axis = line.axis(frame.width - frame.left - frame.right)
            return line_chart(series, bare(axis), SMALL, frame, f"Held-out pass@1 of {area} over all stages", number)

        colour = colour_of(area, order)
        domain, _, family = area.rpartition("/")
        latest = _latest(runs[0], "families", area)
        figures.append(
            f'<figure class="small"><figcaption><b class="c{colour}">{esc(family)}</b> <span>{esc(domain)}</span>'
            f"<output>{number(at(latest, 'mean'))}</output></figcaption>{_both(draw)}</figure>"
        )
    return f'<div class="multiples">{"".join(figures)}</div>' if figures else ""


def _latest(run: Run, kind: str, area: str) -> object:
    """The newest estimate of an area: the last stage's final one, else its last evaluation."""
    for stage in reversed(run.line):
        for record in (stage.finals.get(run.primary or ""), *reversed(stage.evaluations)):
            if finite(at(record, kind, area, "sampled", "mean")) is not None:
                return at(record, kind, area, "sampled")
    return None


def _domain_table(runs: Sequence[Run], order: Sequence[str]) -> str:
    rows = []
    for run in runs:
        stages = [*run.line, *([run.control] if run.control else [])]
        for stage in stages:
            for line in stage.evaluations:
                place = f"{title(stage.name)} {whole(line.get('update'))}"
                where = place if len(runs) == 1 else f"{run.name}: {place}"
                rows.append([esc(where), number(line.get("cpu_seconds"), 1), *(_cell(line, area) for area in order)])
    head = ["stage and update", "CPU s", *map(esc, order)]
    return (
        folded("The same figures as a table", table(head, rows, "Held-out pass@1 with 95 % intervals")) if rows else ""
    )


def _cell(line: Mapping[str, Any], area: str) -> str:
    estimate = at(line, "domains", area, "sampled")
    return f"{number(at(estimate, 'mean'))} <small>{interval(estimate)}</small>"


def mode_charts(run: Run) -> str:
    """Worked against terse answers: how many there are, and how often each is right, by domain."""
    order, figures = domains([run]), []
    for area in order:
        if any(at(line, "modes", area) for stage in run.line for line in stage.evaluations):
            colour = colour_of(area, order)
            charts = _both(partial(_mode_chart, run, area, colour))
            name = f'<b class="c{colour}">{esc(area)}</b>'
            figures.append(f'<figure class="small"><figcaption>{name}</figcaption>{charts}</figure>')
    return f'<div class="thirds">{"".join(figures)}</div>' if figures else ""


def _mode_chart(run: Run, area: str, colour: int, clock: str) -> str:
    frame, line = Frame(350, 190, left=30, right=64, top=20, bottom=22), time_line([run], clock)
    share = _mode_points(run.line, line, area, "worked", "share")
    worked = _mode_points(run.line, line, area, "worked", "mean")
    terse = _mode_points(run.line, line, area, "terse", "mean")
    series = [
        Series("share worked", 8, share, "dashed", "share"),
        Series("worked right", colour, worked, "line", "worked"),
        Series("terse right", 3, terse, "line", "terse"),
    ]
    axis = bare(line.axis(frame.width - frame.left - frame.right))
    name = f"Worked and terse answers of {area}: share and accuracy"
    return line_chart([one for one in series if one.points], axis, SMALL, frame, name, number)


def _mode_points(line: Sequence[Stage], clock: TimeLine, area: str, mode: str, what: str) -> tuple[Point, ...]:
    points = []
    for stage in line:
        for record in stage.evaluations:
            value = finite(at(record, "modes", area, mode, what))
            x = clock.place(stage.name, record)
            if value is not None and x is not None:
                points.append(Point(x, value, clock.heading(stage.name, whole(record.get("update")))))
    return tuple(points)
