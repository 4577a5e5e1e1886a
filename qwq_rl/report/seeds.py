"""All seeds of a recipe on one page: every seed's numbers, their mean and range, and a tab a seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from qwq_rl.report.bars import micro_difference, micro_score
from qwq_rl.report.curves import colour_of
from qwq_rl.report.load import Run, domains
from qwq_rl.report.markup import NONE, at, duration, esc, finite, number, signed
from qwq_rl.report.page import ROLLOUT_BYTES, body, learning, section, total_seconds
from qwq_rl.report.tables import Cell, Comparison, area_table, columns, comparisons, heading, reach_of
from qwq_rl.report.verdict import score, sentences


def seeds_body(name: str, runs: Sequence[Run]) -> str:
    """The seeds together, then a tab a seed with its own page."""
    tables = _scores(runs) + "<h3>Paired differences</h3>" + _differences(runs)
    together = section("All", "All seeds", tables + learning(runs, "all-", seeds=True))
    tabs = "".join(f'<button data-tab="{esc(run.name)}">{esc(run.name)}</button>' for run in runs)
    bar = f'<nav class="tabs" aria-label="Seeds" hidden>{tabs}</nav>'
    return f"{_header(name, runs)}<main>{together}</main>{bar}{''.join(_article(name, run, len(runs)) for run in runs)}"


def _header(name: str, runs: Sequence[Run]) -> str:
    verdicts = "".join(
        f'<div><dt><a href="#{esc(run.name)}">{esc(run.name)}</a></dt><dd>{" ".join(sentences(run))}</dd></div>'
        for run in runs
    )
    known = [seconds for run in runs if (seconds := total_seconds(run, "cpu")) is not None]
    ends = dict.fromkeys(duration(seconds) for seconds in (min(known), max(known))) if known else {}
    spent = f", {' to '.join(ends)} of CPU each" if ends else ""
    return (
        f'<header class="run"><h1>{esc(name)}</h1><p class="verdict">{len(runs)} seeds, every one reported{spent}.</p>'
        f'<dl class="verdicts">{verdicts}</dl></header>'
    )


def _article(name: str, run: Run, count: int) -> str:
    heading = f"{esc(name)} <small>{esc(run.name)}</small>"
    content = body(run, f"{run.name}-", ROLLOUT_BYTES // count, heading)
    return f'<article class="seed" id="{esc(run.name)}">{content}</article>'


def _scores(runs: Sequence[Run]) -> str:
    model = max(runs, key=lambda run: len(columns(run)))
    shown = columns(model)
    if not shown:
        return '<p class="note">No seed has a final evaluation yet.</p>'
    cells = [_score_cell(runs, stage.name) for stage in shown]
    caption = f"pass@1 at T=1 on {model.primary}: the mean over the seeds, then each seed; the mark shows their range"
    return area_table(runs, [heading(stage, model) for stage in shown], cells, caption)


def _score_cell(runs: Sequence[Run], stage: str) -> Cell:
    def cell(kind: str, area: str) -> str:
        values = [finite(at(score(run.stage(stage), run.primary, area, kind), "mean")) for run in runs]
        known = [value for value in values if value is not None]
        if not known:
            return NONE
        each = " · ".join(number(value) for value in values)
        mark = micro_score(_range(known), colour_of(area, domains(runs)))
        return f'<span class="figure">{number(mean(known))}</span> <span class="ci">{each}</span>{mark}'

    return cell


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "low": min(values), "high": max(values)}


def _differences(runs: Sequence[Run]) -> str:
    """Every comparison that any seed has made."""
    names = dict.fromkeys(one.name for run in runs for one in comparisons(run))
    if not names:
        return '<p class="note">No paired differences yet: no seed has a <code>summary.json</code>.</p>'
    cells = [_difference_cell(runs, name) for name in names]
    heads = [f"{esc(name)}<small>mean; each seed and its bound</small>" for name in names]
    primary = next((run.primary for run in runs if run.primary), "?")
    caption = f"Differences of pass@1 on {primary}, paired by prompt, with one-sided 95 % lower bounds"
    return area_table(runs, heads, cells, caption)


def _difference_cell(runs: Sequence[Run], name: str) -> Cell:
    reach = reach_of(runs)
    made: list[Comparison | None] = [next((one for one in comparisons(run) if one.name == name), None) for run in runs]

    def cell(kind: str, area: str) -> str:
        found = [one.get(run.primary, kind, area) if one else None for run, one in zip(runs, made, strict=True)]
        known = [value for pair in found if (value := finite(at(pair, "difference", "mean"))) is not None]
        if not known:
            return NONE
        each = "".join(_pair(run.name, pair) for run, pair in zip(runs, found, strict=True))
        mark = micro_difference(_range(known), reach, colour_of(area, domains(runs)))
        return f'<span class="figure">{signed(mean(known))}</span>{mark}<dl class="beside lines">{each}</dl>'

    return cell


def _pair(seed: str, paired: object) -> str:
    middle, bound = signed(at(paired, "difference", "mean")), signed(at(paired, "lower95"))
    return f"<div><dt>{esc(seed)}</dt><dd>{middle}, ≥ {bound}</dd></div>"
