"""Learning curves: held-out scores over all stages, by domain, by family, and by mode of answering (worked, terse)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from qwq_rl.report.charts import UNIT, Frame, Point, Series, TimeLine, Vertical, bare, line_chart, seconds_of, time_line
from qwq_rl.report.load import Run, Stage, domains, families
from qwq_rl.report.markup import at, esc, finite, folded, interval, listed, number, table, title, whole

SMALL = Vertical(0.0, 1.0, (0.0, 0.5, 1.0))
"""The vertical axis of small charts."""


def colour_of(area: str, order: Sequence[str]) -> int:
    """Return the colour class of a domain, or of a family's domain: 0..7, or 8 (neutral) if it is not in `order`."""
    domain = area.split("/")[0]
    return order.index(domain) % 8 if domain in order else 8


def _point(line: Mapping[str, Any], kind: str, area: str, x: float | None, heading: str) -> Point | None:
    estimate = at(line, kind, area, "sampled")
    score = finite(at(estimate, "mean"))
    if score is None or x is None:
        return None
    return Point(x, score, heading, finite(at(estimate, "low")), finite(at(estimate, "high")))


def held_out(run: Run, clock: TimeLine, kind: str, area: str) -> tuple[Point, ...]:
    """The evaluations during the stages that lead to the released model; `kind` is domains or families."""
    points = []
    for stage in run.line:
        for line in stage.evaluations:
            heading = clock.heading(stage.name, whole(line.get("update")))
            points.append(_point(line, kind, area, clock.place(stage.name, line), heading))
    return tuple(point for point in points if point)


def final_marks(run: Run, clock: TimeLine, kind: str, area: str) -> tuple[Point, ...]:
    """The scores on the primary set, each at the end of its stage."""
    points = []
    for stage in run.line:
        span = clock.span(stage.name)
        record = stage.finals.get(run.primary or "")
        if span and record:
            points.append(_point(record, kind, area, span.end, f"after {title(stage.name)}"))
    return tuple(point for point in points if point)


def control_curve(run: Run, clock: TimeLine, kind: str, area: str) -> tuple[Point, ...]:
    """The control's scores, within the span of the stage it is compared with.

    They are placed by CPU time on both clocks, because an update of the control is not the same work as one of RL.
    """
    span = clock.span(run.control_of)
    stage = run.stage(run.control_of)
    if run.control is None or span is None or stage is None:
        return ()
    longest = max(seconds_of(run.control), seconds_of(stage)) or 1.0
    points = []
    for line in run.control.evaluations:
        seconds = finite(line.get("cpu_seconds"))
        x = None if seconds is None else span.start + (span.end - span.start) * min(seconds / longest, 1.0)
        points.append(_point(line, kind, area, x, f"control, {seconds or 0:.0f} CPU s"))
    record = run.control.finals.get(run.primary or "")
    if record and not points:
        points.append(_point(record, kind, area, span.end, "control, at its end"))
    return tuple(point for point in points if point)


def _area_series(run: Run, clock: TimeLine, kind: str, area: str, colour: int, label: bool) -> list[Series]:
    name = area if kind == "domains" else "held out"
    curve = held_out(run, clock, kind, area)
    marks, control = final_marks(run, clock, kind, area), control_curve(run, clock, kind, area)
    last = (marks or curve or control)[-1:]
    text = f"{area} {number(last[0].y)}" if label and last else ""
    candidates = [
        Series(name, colour, curve, "line", text),
        Series(f"control, {area}" if kind == "domains" else "control", colour, control, "dashed"),
        Series(
            f"{name}, final set" if kind == "domains" else "final set", colour, marks, "marks", "" if curve else text
        ),
    ]
    return [series for series in candidates if series.points]


def _runs_overlaid(runs: Sequence[Run], clock: TimeLine, kind: str, area: str, colour: int, label: str) -> list[Series]:
    """One line for each run, the first solid and the second dashed."""
    overlaid = []
    for index, run in enumerate(runs):
        points = held_out(run, clock, kind, area) or final_marks(run, clock, kind, area)
        overlaid.append(
            Series(f"{area}, {run.name}", colour, points, "dashed" if index else "line", "" if index else label)
        )
    return [series for series in overlaid if series.points]


def _seeds_and_mean(
    runs: Sequence[Run], clock: TimeLine, kind: str, area: str, colour: int, label: str
) -> list[Series]:
    """A thin line for each seed, and their mean at every update at which all of them were evaluated."""
    by_seed = [Series(f"{area}, {run.name}", colour, held_out(run, clock, kind, area), "seed") for run in runs]
    by_heading: dict[str, list[Point]] = {}
    for series in by_seed:
        for point in series.points:
            by_heading.setdefault(point.heading, []).append(point)
    # The heading names stage and update, so points with the same heading belong together.
    complete = {heading: points for heading, points in by_heading.items() if len(points) == len(runs)}
    means = tuple(
        Point(mean(point.x for point in points), mean(point.y for point in points), heading)
        for heading, points in complete.items()
    )
    return [series for series in (*by_seed, Series(f"{area}, mean", colour, means, "line", label)) if series.points]


def series_of(
    runs: Sequence[Run], clock: TimeLine, kind: str, area: str, order: Sequence[str], label: bool, seeds: bool
) -> list[Series]:
    """Return all series of one area: a run with control and final marks, runs overlaid, or seeds and their mean."""
    colour = colour_of(area, order)
    if len(runs) == 1:
        return _area_series(runs[0], clock, kind, area, colour, label)
    return (_seeds_and_mean if seeds else _runs_overlaid)(runs, clock, kind, area, colour, area if label else "")


def _on_both_clocks(draw: Callable[[str], str]) -> str:
    """Draw the same chart over updates and over CPU seconds; page.js shows one of them."""
    return "".join(f'<div data-axis="{clock}">{draw(clock)}</div>' for clock in ("updates", "cpu"))


def domain_chart(runs: Sequence[Run], seeds: bool = False) -> str:
    """The large chart: every domain, all stages."""
    order = domains(runs)
    frame = Frame(1080, 400, left=40, right=118, top=26, bottom=44)

    def draw(clock: str) -> str:
        timeline = time_line(runs, clock)
        series = [curve for area in order for curve in series_of(runs, timeline, "domains", area, order, True, seeds)]
        axis = timeline.axis(frame.width - frame.left - frame.right)
        return line_chart(series, axis, UNIT, frame, f"Held-out pass@1 of {listed(order)} over all stages", number)

    return f'<figure class="wide">{_on_both_clocks(draw)}{_domain_table(runs, order)}</figure>'


def family_charts(runs: Sequence[Run], seeds: bool = False) -> str:
    """One small chart for each family, all on the same axes."""
    order, frame = domains(runs), Frame(262, 164, left=28, right=10, top=20, bottom=22)
    figures = []
    for area in families(runs):

        def draw(clock: str, area: str = area) -> str:
            timeline = time_line(runs, clock)
            series = series_of(runs, timeline, "families", area, order, False, seeds)
            axis = timeline.axis(frame.width - frame.left - frame.right)
            return line_chart(series, bare(axis), SMALL, frame, f"Held-out pass@1 of {area} over all stages", number)

        colour = colour_of(area, order)
        domain, _, family = area.rpartition("/")
        latest = _latest(runs[0], "families", area)
        figures.append(
            f'<figure class="small"><figcaption><b class="c{colour}">{esc(family)}</b> <span>{esc(domain)}</span>'
            f"<output>{number(at(latest, 'mean'))}</output></figcaption>{_on_both_clocks(draw)}</figure>"
        )
    return f'<div class="multiples">{"".join(figures)}</div>' if figures else ""


def _latest(run: Run, kind: str, area: str) -> object:
    """The newest estimate of an area. In each stage, from the last one back: the final one, then the evaluations."""
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
                stage_and_update = f"{title(stage.name)} {whole(line.get('update'))}"
                row_name = stage_and_update if len(runs) == 1 else f"{run.name}: {stage_and_update}"
                rows.append([esc(row_name), number(line.get("cpu_seconds"), 1), *(_cell(line, area) for area in order)])
    head = ["stage and update", "CPU s", *map(esc, order)]
    return (
        folded("The same figures as a table", table(head, rows, "Held-out pass@1 with 95 % intervals")) if rows else ""
    )


def _cell(line: Mapping[str, Any], area: str) -> str:
    estimate = at(line, "domains", area, "sampled")
    return f"{number(at(estimate, 'mean'))} <small>{interval(estimate)}</small>"


def mode_charts(run: Run) -> str:
    """Charts of worked and terse answers, by domain: the share of worked ones, and how often each kind is right."""
    order, figures = domains([run]), []
    for area in order:
        if any(at(line, "modes", area) for stage in run.line for line in stage.evaluations):
            colour = colour_of(area, order)
            charts = _on_both_clocks(partial(_mode_chart, run, area, colour))
            name = f'<b class="c{colour}">{esc(area)}</b>'
            figures.append(f'<figure class="small"><figcaption>{name}</figcaption>{charts}</figure>')
    return f'<div class="thirds">{"".join(figures)}</div>' if figures else ""


def _mode_chart(run: Run, area: str, colour: int, clock: str) -> str:
    frame, timeline = Frame(350, 190, left=30, right=64, top=20, bottom=22), time_line([run], clock)
    share = _mode_points(run.line, timeline, area, "worked", "share")
    worked = _mode_points(run.line, timeline, area, "worked", "mean")
    terse = _mode_points(run.line, timeline, area, "terse", "mean")
    series = [
        Series("share worked", 8, share, "dashed", "share"),
        Series("worked right", colour, worked, "line", "worked"),
        Series("terse right", 3, terse, "line", "terse"),
    ]
    axis = bare(timeline.axis(frame.width - frame.left - frame.right))
    name = f"Worked and terse answers of {area}: share and accuracy"
    return line_chart([curve for curve in series if curve.points], axis, SMALL, frame, name, number)


def _mode_points(stages: Sequence[Stage], clock: TimeLine, area: str, mode: str, what: str) -> tuple[Point, ...]:
    points = []
    for stage in stages:
        for evaluation in stage.evaluations:
            value = finite(at(evaluation, "modes", area, mode, what))
            x = clock.place(stage.name, evaluation)
            if value is not None and x is not None:
                points.append(Point(x, value, clock.heading(stage.name, whole(evaluation.get("update")))))
    return tuple(points)
